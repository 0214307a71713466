"""The real server, told to stop while a clip runs: it ends soon and says so, and its log tells what was."""

import logging
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from gradio_client import Client, handle_file
from helpers.browser import PATIENCE, wait_for
from helpers.gpu_visits import visiting
from helpers.paths import ROOT

from live2diff.errors import ServerStopping
from live2diff.serving.engine import Engine
from live2diff.streaming.settings import StreamSettings
from live2diff.zerogpu import worker
from live2diff.zerogpu.engine import ZeroGpuEngine

CLIP = ROOT / "examples" / "room.mp4"
FRAME = np.zeros((32, 32, 3), np.uint8)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.long
def test_a_server_that_is_stopped_ends_soon_and_its_clip_says_that_it_was_cut(tmp_path):
    port = free_port()
    options = ["--model", "nano", "--port", str(port), "--grace-seconds", "0.5"]
    server = subprocess.Popen(
        [sys.executable, "app.py", *options], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    told: list[str] = []
    reader = threading.Thread(target=lambda: told.extend(server.stderr), daemon=True)
    reader.start()

    def answers() -> bool:
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", port)) == 0 or server.poll() is not None

    try:
        wait_for(answers)
        client = Client(f"http://127.0.0.1:{port}", verbose=False, download_files=str(tmp_path))
        with ThreadPoolExecutor(1) as callers:
            words = {"style": "oil", "prompt": "a secret of mine"}
            answer = callers.submit(client.predict, clip=handle_file(CLIP), **words, api_name="/translate")
            wait_for(lambda: client.predict(api_name="/health")["clips"] == 1)
            server.send_signal(signal.SIGTERM)
            assert server.wait(PATIENCE) == 0
            assert "being stopped" in str(answer.exception(PATIENCE))
    finally:
        server.kill()
    reader.join(PATIENCE)
    log = "".join(told)
    assert re.search(r"INFO opened kind=clip id=\w{8} style=oil", log), log
    assert re.search(r"INFO closed kind=clip id=\w{8} reason=stopped frames_in=\d+ .*seconds=\d", log), log
    assert "stopped clips_cut=1" in log and "secret" not in log and "Traceback" not in log, log


def test_a_line_for_each_stream_opened_and_closed_and_nothing_of_what_anybody_said(tiny_pipeline, caplog):
    with caplog.at_level(logging.INFO, logger="live2diff"):
        engine = Engine(tiny_pipeline, capacity=2)
        engine.open("live/token", StreamSettings(prompt="a secret of mine", style="neon", steps=1)).result(
            PATIENCE
        )
        for _ in range(9):
            engine.push("live/token", FRAME).result(PATIENCE)
        engine.open("live/token", StreamSettings(style="comic")).result(PATIENCE)
        engine._visitors["live/token"].last_seen -= 1000
        engine.make_room()
        with engine.clip("clip/token", StreamSettings(style="neon")) as stream:
            stream.push(FRAME)
        engine.shutdown()
    assert lines_of(caplog) == [
        "opened kind=live style=neon steps=1 size=None",
        "closed kind=live reason=replaced frames_in=9 frames_out=9",
        "opened kind=live style=comic steps=None size=None",
        "closed kind=live reason=silent frames_in=0 frames_out=0",
        "opened kind=clip style=neon steps=None size=None",
        "closed kind=clip reason=closed frames_in=1 frames_out=0",
    ]


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was written down, without what is never the same, and without anybody's secrets."""
    lines = [record.getMessage() for record in caplog.records]
    assert not any("token" in line or "secret" in line for line in lines)
    return [re.sub(r"id=\w{8} | seconds=\d+\.\d\d", "", line) for line in lines]


def test_where_the_gpu_is_lent_the_log_has_a_line_for_each_visit_and_clip(tiny_pipeline, caplog, monkeypatch):
    with caplog.at_level(logging.INFO, logger="live2diff"):
        engine = ZeroGpuEngine(tiny_pipeline, capacity=2)
        engine.open("live/token", StreamSettings(prompt="a secret of mine", style="neon", steps=1))
        with visiting(engine, "live/token"):
            for _ in range(9):
                engine.push("live/token", FRAME).result(PATIENCE)
            engine.open("live/token", StreamSettings(style="comic")).result(PATIENCE)
        engine.open("live/token", StreamSettings(style="neon", steps=1))
        monkeypatch.setattr(worker, "SILENCE_SECONDS", 0.3)
        with visiting(engine, "live/token") as over:
            wait_for(over.is_set)  # no frame comes
        engine.visit_seconds = 0.2
        with visiting(engine, "live/token") as over:
            wait_for(over.is_set)
        with engine.clip("clip/token", StreamSettings(style="neon", steps=1)) as stream:
            for _ in range(9):
                stream.push(FRAME)
            stream.flush()
        with pytest.raises(ServerStopping), engine.clip("clip/token", StreamSettings(style="neon")) as stream:
            stream.push(FRAME)
            engine.end()
            stream.push(FRAME)
        with pytest.raises(ServerStopping), engine.clip("clip/token", StreamSettings(style="neon")):
            pass
        engine.shutdown()
    *lines, last = lines_of(caplog)
    assert last.startswith("closed kind=clip reason=stopped frames_in=")  # maybe in the middle of a frame
    assert lines == [
        "opened kind=live style=neon steps=1 size=None",
        "closed kind=live reason=replaced frames_in=9 frames_out=9",
        "opened kind=live style=comic steps=None size=None",
        "closed kind=live reason=closed frames_in=0 frames_out=0",
        "opened kind=live style=neon steps=1 size=None",
        "closed kind=live reason=silent frames_in=0 frames_out=0",
        "opened kind=live style=neon steps=1 size=None",
        "closed kind=live reason='time over' frames_in=0 frames_out=0",
        "opened kind=clip style=neon steps=1 size=None",
        "closed kind=clip reason=closed frames_in=9 frames_out=9",
        "opened kind=clip style=neon steps=None size=None",
    ]
