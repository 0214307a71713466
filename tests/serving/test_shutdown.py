"""A stopped server ends soon, runs its exit functions, and its log names the streams."""

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
from helpers.gpu_visits import Clock, visiting
from helpers.paths import ROOT
from helpers.waiting import PATIENCE, wait_for

from live2diff.errors import ServerStopping
from live2diff.serving.engine import Engine
from live2diff.serving.shutdown import REPORT_SECONDS
from live2diff.streaming.settings import StreamSettings
from live2diff.zerogpu.engine import ZeroGpuEngine
from live2diff.zerogpu.worker import SILENCE_SECONDS

CLIP = ROOT / "examples" / "room.mp4"
FRAME = np.zeros((32, 32, 3), np.uint8)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.long
def test_a_server_that_is_stopped_ends_soon_and_its_clip_says_that_it_was_cut(tmp_path):
    port = free_port()
    options = ["--model", "nano", "--size", "256", "--port", str(port), "--grace-seconds", "0.5"]
    server = subprocess.Popen(
        [sys.executable, "app.py", *options], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(server.stderr), daemon=True)
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
    log = "".join(lines)
    assert re.search(r"INFO opened kind=clip id=\w{8} style=oil", log), log
    assert re.search(r"INFO closed kind=clip id=\w{8} reason=stopped frames_in=\d+ .*seconds=\d", log), log
    assert "stopped clips_cut=1" in log and "secret" not in log and "Traceback" not in log, log


CHILD = """
import atexit, os, signal, sys, threading, time
from live2diff.serving import event_log
from live2diff.serving.shutdown import serve_until_stopped

now, clip_ends = 0, int(sys.argv[1])  # tenths of a second: only `sleep` moves the clock

def sleep(seconds):
    global now
    now += round(10 * seconds)

time.sleep, time.monotonic = sleep, lambda: now / 10

class Engine:
    failure = ""
    ended = False
    def shutdown(self): print("shutdown")
    def stats(self): return {"streams": 0, "clips": int(now < clip_ends and not self.ended)}
    def end(self, clips=True):
        self.ended = clips
        print("end", clips)

class Page:
    def close(self, verbose=True): print("closed after", now / 10)

atexit.register(print, "tunnel stopped")  # as Gradio does with that of --share
threading.Thread(target=threading.Event().wait, daemon=True).start()

install = signal.signal

def install_and_stop(number, handler):
    install(number, handler)
    if number == signal.SIGINT and callable(handler):  # the second handler
        os.kill(os.getpid(), signal.SIGTERM)

signal.signal = install_and_stop
event_log.configure()
serve_until_stopped(Page(), Engine(), grace=10.0)
"""


@pytest.mark.parametrize(
    ("clip_ends", "closed", "cut"),
    [(0, 0.0, 0), (30, 3.0 + REPORT_SECONDS, 0), (1000, 10.0 + REPORT_SECONDS, 1)],
    ids=["no clip", "a clip that finishes in time", "a clip that is cut"],
)
def test_a_stopped_server_waits_until_results_are_fetched_and_runs_exit_functions(clip_ends, closed, cut):
    command = [sys.executable, "-c", CHILD, str(clip_ends)]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    ends = ["end False", "end True", f"closed after {closed}", "shutdown", "tunnel stopped"]
    assert child.stdout.splitlines() == ends, child.stderr
    assert child.returncode == 0 and f"stopped clips_cut={cut}" in child.stderr, child.stderr


def test_the_log_has_a_line_for_each_stream_opened_and_closed_and_no_prompt(tiny_pipeline, caplog):
    clock = Clock()
    with caplog.at_level(logging.INFO, logger="live2diff"):
        engine = Engine(tiny_pipeline, capacity=2, clock=clock)
        settings = StreamSettings(prompt="a secret of mine", style="neon", steps=1)
        engine.open("live/token", settings).result(PATIENCE)
        for _ in range(9):
            engine.push("live/token", FRAME).result(PATIENCE)
        engine.open("live/token", StreamSettings(style="comic")).result(PATIENCE)
        clock.now += 1000
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
    """Return the log without what is never the same, and assert that it holds no secrets."""
    lines = [record.getMessage() for record in caplog.records]
    assert not any("token" in line or "secret" in line for line in lines)
    return [re.sub(r"id=\w{8} | seconds=\d+\.\d\d", "", line) for line in lines]


def test_where_the_gpu_is_lent_the_log_has_a_line_for_each_session_and_clip(tiny_pipeline, caplog):
    clock = Clock()
    with caplog.at_level(logging.INFO, logger="live2diff"):
        engine = ZeroGpuEngine(tiny_pipeline, capacity=2, clock=clock)
        one_step = StreamSettings(prompt="a secret of mine", style="neon", steps=1)
        engine.open("live/token", one_step)
        with visiting(engine, "live/token"):
            for _ in range(9):
                engine.push("live/token", FRAME).result(PATIENCE)
            engine.open("live/token", StreamSettings(style="comic")).result(PATIENCE)
        engine.open("live/token", one_step)
        session = engine.registry.get("live/token")
        with visiting(engine, "live/token") as over:
            wait_for(lambda: session.stream is not None)
            clock.now += SILENCE_SECONDS + 1  # no frame comes
            assert over.wait(PATIENCE)
        with visiting(engine, "live/token"):
            wait_for(lambda: session.stream is not None)
            first = session.run
            clock.now += engine.gpu_seconds
            wait_for(lambda: session.run not in (None, first) and session.stream is not None)
        with engine.clip("clip/token", one_step) as stream:
            for _ in range(9):
                stream.push(FRAME)
            stream.flush()
        with pytest.raises(ServerStopping), engine.clip("clip/token", StreamSettings(style="neon")) as stream:
            engine.end()
            stream.flush()
        with pytest.raises(ServerStopping), engine.clip("clip/token", StreamSettings(style="neon")):
            pass
        engine.shutdown()
    assert lines_of(caplog) == [
        "opened kind=live style=neon steps=1 size=None",
        "closed kind=live reason=replaced frames_in=9 frames_out=9",
        "opened kind=live style=comic steps=None size=None",
        "closed kind=live reason=closed frames_in=0 frames_out=0",
        "opened kind=live style=neon steps=1 size=None",
        "closed kind=live reason=silent frames_in=8 frames_out=8",
        "opened kind=live style=neon steps=1 size=None",
        "closed kind=live reason='time over' frames_in=8 frames_out=8",
        "opened kind=live style=neon steps=1 size=None",
        "closed kind=live reason=closed frames_in=8 frames_out=8",
        "opened kind=clip style=neon steps=1 size=None",
        "closed kind=clip reason=closed frames_in=9 frames_out=9",
        "opened kind=clip style=neon steps=None size=None",
        "closed kind=clip reason=stopped frames_in=0 frames_out=0",
    ]


def test_a_clip_is_closed_when_its_context_ends(tiny_pipeline):
    """Even if the device is slow to close it: the next clip opens after."""
    engine, order = Engine(tiny_pipeline), []
    closing, go_on = threading.Event(), threading.Event()

    def run() -> None:
        with engine.clip("clip", StreamSettings(style="neon")) as stream:
            stream.push(FRAME)
            opened = engine.registry.get("clip").stream
            close = opened.close

            def close_slowly() -> None:
                closing.set()
                go_on.wait(PATIENCE)
                close()
                order.append("closed")

            opened.close = close_slowly
        order.append("ended")

    clip = threading.Thread(target=run)
    clip.start()
    assert closing.wait(PATIENCE)
    go_on.set()
    clip.join(PATIENCE)
    assert order == ["closed", "ended"]
    engine.shutdown()
