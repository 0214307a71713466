"""Compile the attention kernel for GPUs that are not here, and print what `ptxas` says of it.

    PYTHONPATH=.:tests python -m helpers.compile_kernels [COMPUTE CAPABILITY ...]

One line of JSON for each: registers of a thread, bytes spilled, loads of 16 bytes.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from live2diff.runtime.kernels import WARPS, attend_kernel, layout

CAPABILITIES = (80, 86, 89, 90, 120)  # A100, RTX 30, RTX 40, H100, Blackwell
CHANNELS = (320, 640, 1280)  # of Stable Diffusion 1.5
BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def compile_kernel(capability: int, channels: int, kind: str) -> dict[str, object]:
    """Compile for float16 or bfloat16 inputs with a cache of the same kind, or `kind` "i8"."""
    floats, cached = ("fp16", "i8") if kind == "i8" else (kind, kind)
    names, constants = attend_kernel.arg_names, layout(channels) | {"SCALED": kind == "i8"}
    signature = {name: f"*{floats}" for name in ("new", "tables", "out")}
    signature |= {"index": "*i64", "count": "*i64", "keys": f"*{cached}", "values": f"*{cached}"}
    signature |= {"scales": "*bf16" if kind == "i8" else f"*{cached}"}
    signature |= {"row_stride": "i32", "scale_stride": "i32", "pixels": "i32"}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in signature}
    source = ASTSource(
        fn=attend_kernel,
        signature={name: signature.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=aligned,
    )
    compiled = triton.compile(source, GPUTarget("cuda", capability, 32), {"num_warps": WARPS})
    assembler = BINARIES / ("ptxas-blackwell" if capability >= 100 else "ptxas")
    suffix = "a" if capability >= 90 else ""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(compiled.asm["ptx"])
        file.flush()
        command = [assembler, "-v", f"--gpu-name=sm_{capability}{suffix}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "capability": capability,
        "channels": channels,
        "kind": kind,
        "registers": int(re.findall(r"Used (\d+) registers", said)[0]),
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", said))),
        "stack": sum(map(int, re.findall(r"(\d+) bytes stack frame", said))),
        "wide_loads": len(re.findall(r"ld\.global\S*\.v4\.b32", compiled.asm["ptx"])),
    }


def main() -> None:
    for capability in [int(argument) for argument in sys.argv[1:]] or CAPABILITIES:
        for channels in CHANNELS:
            for kind in ("fp16", "bf16", "i8"):
                print(json.dumps(compile_kernel(capability, channels, kind)), flush=True)


if __name__ == "__main__":
    main()
