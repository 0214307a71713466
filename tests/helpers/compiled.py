"""What compilers for GPUs say of the Triton kernels, asked in a process that does not interpret them."""

import json
import os
import subprocess
import sys
from typing import Any

from .paths import ROOT


def compiled_for_gpus(module: str) -> list[dict[str, Any]]:
    """Return what `compile_kernels` prints of the kernels in "kernels" or "fusions"."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-m", "helpers.compile_kernels", module]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    print(run.stdout)
    return [json.loads(line) for line in run.stdout.splitlines()]
