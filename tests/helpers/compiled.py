"""Triton's kernels in processes of their own: interpreted, and compiled for GPUs.

Triton asks for `TRITON_INTERPRET` when it is imported.
"""

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from .paths import ROOT

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="run by another test, in a process of its own")


def run_interpreted(file: str, *options: str) -> None:
    """Run the tests of a file that are `interpreted`; in that process, skip the test that calls this."""
    if INTERPRETED:
        pytest.skip("this is that process")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, file]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"\d+ passed, 1 skipped", run.stdout), run.stdout


def compiled_for_gpus(module: str) -> list[dict[str, Any]]:
    """Return what `compile_kernels` prints of the kernels in "kernels" or "fusions"."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-m", "helpers.compile_kernels", module]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    print(run.stdout)
    return [json.loads(line) for line in run.stdout.splitlines()]
