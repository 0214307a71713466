"""Check a GPU: `python -m live2diff.gpucheck --out gpu.json [--minutes 9]`.

The exit code is 0 if every stage passed, 1 if one failed, 2 where there is no GPU that works or an option
is wrong. It needs no network, and nothing of Gradio, OpenVINO or PyAV.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from ..benchmark.models import random_model
from ..loading import load
from ..runtime.device import DeviceError, check_device
from .stages import STAGES, Check, Result, attempt, versions

PASSED, FAILED, NO_GPU = 0, 1, 2
GRACE = 1.5  # a stage is interrupted after this many times its share of the time,
AGAIN_SECONDS = 5.0  # and from then on again after so many seconds


def interrupt(*_: object) -> None:
    """Interrupt a stage that takes far too long, as soon as Python code runs again."""
    raise RuntimeError(f"it took more than {GRACE:g} times its share of the time")


def write_report(path: Path, report: Result) -> None:
    """Write the report atomically."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(report, indent=1, default=str) + "\n")
    part.replace(path)


def run_stages(check: Check, out: Path, minutes: float, log: Callable[[str], None] = print) -> bool:
    """Run the stages, each in its share of the time, and report after each; return whether all passed."""
    stages: Result = {}
    report = {"verdict": "unfinished", "minutes": minutes, "stages": stages}
    for name, (stage, share) in STAGES.items():
        began, seconds = time.monotonic(), 60 * minutes * share
        check.deadline = began + seconds
        if hasattr(signal, "setitimer"):  # not on Windows
            signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, GRACE * seconds, AGAIN_SECONDS)
        try:
            result = attempt(lambda stage=stage: stage(check))
        finally:
            if hasattr(signal, "setitimer"):
                signal.setitimer(signal.ITIMER_REAL, 0)
        stages[name] = result | {"seconds": round(time.monotonic() - began, 2)}
        write_report(out, report)
        state = "skipped" if "skipped" in result else "ok" if result["ok"] else "FAILED"
        log(f"{name}: {state} {result.get('error', result.get('skipped', ''))}".rstrip())
    passed = all(result.get("ok", True) for result in stages.values())
    write_report(out, report | {"verdict": "pass" if passed else "fail"})
    return passed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m live2diff.gpucheck", description="Check a CUDA GPU.")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the report, as JSON")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all stages (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        write_report(options.out, {"verdict": "unfinished"})  # to fail early if that is impossible
    except OSError as error:
        parser.error(f"--out {options.out}: {error.strerror}")
    try:
        check_device("cuda")
    except DeviceError as error:
        found = {"verdict": "no GPU", "problem": str(error), "stages": {"env": versions()}}
        write_report(options.out, found)
        print(f"gpucheck: no GPU was checked. {error}")
        return NO_GPU
    build_tiny = partial(load, "nano", dtype=torch.float32, eager=True)
    check = Check(torch.device("cuda"), build_tiny, random_model)
    passed = run_stages(check, options.out, options.minutes, partial(print, flush=True))
    print(f"gpucheck: {'passed' if passed else 'FAILED'}; the report is in {options.out}")
    return PASSED if passed else FAILED


if __name__ == "__main__":
    sys.exit(main())
