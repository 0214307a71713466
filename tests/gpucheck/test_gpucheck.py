"""The check of a GPU runs all stages on a CPU with a tiny model, and reports a missing GPU."""

import json
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from helpers.paths import ROOT

from live2diff.gpucheck import stages
from live2diff.gpucheck.__main__ import NO_GPU, main, run_stages
from live2diff.gpucheck.stages import STAGES, Check, memory, soak

ALONE = """
import sys
sys.modules |= dict.fromkeys(["gradio", "openvino", "av"])  # importing one raises
from live2diff.gpucheck.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def check(tiny_pipeline, monkeypatch) -> Check:
    """A check small enough for a CPU; no stage has a limit of time."""
    monkeypatch.setitem(STAGES, "soak", (soak, 0.0))
    small = {
        "sizes": (16, 24),
        "steps": (1, 2),
        "viewers": (1, 2),
        "rounds": 2,
        "side": 32,
        "camera": (48, 64),
    }
    return Check(torch.device("cpu"), lambda _: tiny_pipeline, lambda _: tiny_pipeline, **small)


def test_every_stage_runs_and_the_report_says_what_was_left_out(check, tmp_path):
    said: list[str] = []
    assert run_stages(check, tmp_path / "gpu.json", 1000.0, said.append)
    report = json.loads((tmp_path / "gpu.json").read_text())
    stages = report["stages"]
    assert report["verdict"] == "pass" and list(stages) == list(STAGES) and len(said) == len(STAGES)
    assert stages["env"]["tflops"] > 0 and stages["env"]["torch"] == torch.__version__
    for stage in ("tiny", "full", "speed"):
        for mode in ("graphs", "compiled"):
            assert stages[stage][mode] == {"skipped": "on a CUDA GPU only; this is cpu"}
    assert stages["tiny"]["eager"] == {"ok": True, "mean": 0, "max": 0}
    assert stages["full"]["int8"]["max"] > 0 and stages["full"]["2 viewers"]["ok"]
    rows = stages["speed"]["rows"]
    assert [(row["size"], row["steps"], row["viewers"]) for row in rows] == [
        (size, steps, viewers) for size in (16, 24) for steps in (1, 2) for viewers in (1, 2)
    ]
    assert all(row["fps"] > 0 for row in rows) and stages["speed"]["parts"]["unet"]["p50_ms"] > 0
    assert stages["speed"]["joining"]["p99_ms"] > 0 and stages["speed"]["live"]["fps"] > 0
    assert len(stages["kernels"]["rows"]) == 25 and stages["kernels"]["rows"][0]["ms"] > 0
    for moment in ("warmup", "stream"):
        assert stages["memory"][moment]["ok"] and "refused" in stages["memory"][moment]["message"]
    assert stages["soak"]["frames"] == 16


def test_a_stage_that_fails_is_in_the_report_and_keeps_no_other_from_running(check, tmp_path, monkeypatch):
    pipe, built = check.full, []

    def build_tiny(_: str) -> object:
        """The first one, on the CPU, gives inverted images, unlike the second, on the device."""
        built.append(pipe)
        return (
            pipe
            if len(built) == 2
            else SimpleNamespace(stream=lambda *a, **b: Negative(pipe.stream(*a, **b)))
        )

    check.build_tiny = build_tiny

    def broken(_: Check) -> dict:
        raise ZeroDivisionError("a bug")

    monkeypatch.setitem(STAGES, "speed", (broken, 0.3))
    for stage in ("full", "kernels", "memory"):
        monkeypatch.delitem(STAGES, stage)
    assert not run_stages(check, tmp_path / "gpu.json", 1000.0, lambda _: None)
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["verdict"] == "fail" and not report["stages"]["tiny"]["eager"]["ok"]
    assert report["stages"]["speed"]["error"] == "ZeroDivisionError: a bug"
    assert report["stages"]["soak"]["ok"]


class Negative:
    """A stream whose pictures are inverted."""

    def __init__(self, stream):
        self.stream = stream

    def push(self, frame):
        return [255 - out for out in self.stream.push(frame)]

    def close(self) -> None:
        self.stream.close()


def test_memory_that_never_runs_out_does_not_pass(check, monkeypatch):
    monkeypatch.setattr(stages, "full_device", lambda _: nullcontext())
    result = memory(check)
    assert not result["ok"]
    for moment in ("warmup", "stream"):
        assert not result[moment]["ok"] and result[moment]["message"] == "memory did not run out"


def test_a_report_that_cannot_be_written_ends_in_a_line_and_code_2(tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["--out", str(tmp_path / "nowhere" / "gpu.json")])
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"--out {tmp_path / 'nowhere' / 'gpu.json'}: No such file or directory" in line


def test_the_report_is_written_after_each_stage(check, tmp_path, monkeypatch):
    out, states = tmp_path / "gpu.json", []
    for stage in ("tiny", "full", "speed", "kernels", "memory"):
        monkeypatch.delitem(STAGES, stage)
    run_stages(check, out, 1000.0, lambda _: states.append(json.loads(out.read_text())))
    assert [state["verdict"] for state in states] == ["unfinished"] * 3
    assert [len(state["stages"]) for state in states] == [1, 2, 3]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_and_without_the_pages_libraries_it_says_so_and_ends_with_2(tmp_path):
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, "-c", ALONE, "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == NO_GPU, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("gpucheck: no GPU was checked. There is no CUDA GPU here")
    report = json.loads(out.read_text())
    assert report["verdict"] == "no GPU" and report["stages"]["env"]["torch"] == torch.__version__
