"""Compile the Triton kernels for GPUs that need not be here, and print the report of `ptxas`.

    PYTHONPATH=.:tests python -m helpers.compile_kernels kernels|fusions [COMPUTE CAPABILITY ...]

One line of JSON for each: registers of a thread, bytes spilled, loads of 16 bytes.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from live2diff.runtime import fusions, kernels

CAPABILITIES = (80, 86, 89, 90, 120)  # A100, RTX 30, RTX 40, H100, Blackwell
CHANNELS = (320, 640, 1280)  # of Stable Diffusion 1.5
BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def compile_attention(capability: int, channels: int, kind: str) -> dict[str, object]:
    """Compile for float16 or bfloat16 inputs with a cache of the same kind, or `kind` "i8"."""
    floats, cached = ("fp16", "i8") if kind == "i8" else (kind, kind)
    signature = {name: f"*{floats}" for name in ("new", "tables", "out")}
    signature |= {"index": "*i64", "count": "*i64", "keys": f"*{cached}", "values": f"*{cached}"}
    signature |= {"scales": "*bf16" if kind == "i8" else f"*{cached}"}
    signature |= {"row_stride": "i32", "scale_stride": "i32", "pixels": "i32"}
    constants = kernels.layout(channels) | {"SCALED": kind == "i8"}
    found = compile_kernel(kernels.attend_kernel, signature, constants, kernels.WARPS, capability)
    return {"channels": channels, "kind": kind} | found


def compile_fusions(capability: int, channels: int, kind: str) -> list[dict[str, object]]:
    """Compile the group norm, with the activation that needs most, and the gated activation."""
    signature = {name: f"*{kind}" for name in ("x", "weight", "bias", "out")} | {
        "pixels": "i32",
        "eps": "fp32",
    }
    constants = fusions.norm_layout(channels, 32) | {"ACTIVATION": fusions.ACTIVATIONS.index("silu")}
    group_norm = compile_kernel(fusions.group_norm_kernel, signature, constants, fusions.WARPS, capability)
    signature = {"x": f"*{kind}", "out": f"*{kind}", "size": "i32"}
    constants = {"C": 4 * channels, "BLOCK": fusions.GATED}
    geglu = compile_kernel(fusions.geglu_kernel, signature, constants, fusions.WARPS, capability)
    named = {"group norm": group_norm, "geglu": geglu}
    return [{"kernel": name, "channels": channels, "kind": kind} | found for name, found in named.items()]


def compile_kernel(
    kernel: Any, signature: dict[str, str], constants: dict[str, int], warps: int, capability: int
) -> dict[str, object]:
    """Compile one kernel; all its pointers and numbers are multiples of 16."""
    names = kernel.arg_names
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in signature if signature[n] != "fp32"}
    source = ASTSource(
        fn=kernel,
        signature={name: signature.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=aligned,
    )
    compiled = triton.compile(source, GPUTarget("cuda", capability, 32), {"num_warps": warps})
    assembler = BINARIES / ("ptxas-blackwell" if capability >= 90 else "ptxas")
    suffix = "a" if capability >= 90 else ""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(compiled.asm["ptx"])
        file.flush()
        command = [assembler, "-v", f"--gpu-name=sm_{capability}{suffix}", file.name, "-o", "/dev/null"]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
    return {
        "capability": capability,
        "registers": int(re.findall(r"Used (\d+) registers", run.stderr)[0]),
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", run.stderr))),
        "stack": sum(map(int, re.findall(r"(\d+) bytes stack frame", run.stderr))),
        "wide_loads": len(re.findall(r"ld\.global\S*\.v4\.b32", compiled.asm["ptx"])),
    }


def main() -> None:
    module, *capabilities = sys.argv[1:]
    for capability in [int(capability) for capability in capabilities] or CAPABILITIES:
        for channels in CHANNELS:
            if module == "kernels":
                found = [compile_attention(capability, channels, kind) for kind in ("fp16", "bf16", "i8")]
            else:
                found = [f for kind in ("fp16", "bf16") for f in compile_fusions(capability, channels, kind)]
            for line in found:
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
