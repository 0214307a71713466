# ruff: noqa: E402 - Ray is an extra: without it these tests are skipped before they import anything of it
"""The engine in front of a cluster: it is an engine like the local one, and loses no viewer with a worker."""

import gc
import os
import signal
import subprocess
import sys
import threading

import pytest

ray = pytest.importorskip("ray", reason="Ray is an extra: pip install '.[cluster]'")

from helpers.fleet import PATIENCE, alone, camera, jpeg_of, wait_until
from helpers.streams import assert_same, frames

from live2diff.errors import StreamClosed
from live2diff.serving.admission import WaitingLine
from live2diff.streaming.images import decode_frame
from live2diff.streaming.settings import StreamSettings


def test_images_are_bit_identical_to_those_of_a_local_stream(fleet, pipeline):
    settings = {"ann": {"style": "pencil", "seed": 1}, "bob": {"style": "neon", "prompt": "a cat", "seed": 2}}
    clips = {"ann": camera(1, 12), "bob": camera(2, 12)}
    workers = {fleet.open(key, **settings[key]).key for key in clips}
    assert len(workers) == 2, "the second viewer was not placed on the idle worker"
    for key in clips:
        assert fleet.push_all(key, clips[key]) == alone(pipeline, clips[key], **settings[key])


def test_an_answer_names_the_frame_it_shows_and_counts_those_taken_in(fleet):
    fleet.open("ann", style="pencil", steps=3)
    answers = [fleet.push("ann", jpeg, tag) for tag, jpeg in enumerate(camera(4, 13))]
    assert [answer.tag for answer in answers] == [None] * 7 + [7, None, None, 8, 9, 10]
    assert [answer.frames_in for answer in answers] == list(range(1, 14))
    assert [answer.warm for answer in answers] == [False] * 7 + [True] * 6


def test_settings_change_in_order_with_the_frames_as_they_do_locally(fleet, pipeline):
    clip = camera(3, 14)
    fleet.open("ann", style="pencil", steps=1)
    outs = fleet.push_all("ann", clip[:9])
    changed = fleet.engine.update("ann", StreamSettings(style="neon", prompt="word " * 300), blend=4)
    answers = [fleet.engine.push("ann", clip[9]).result(PATIENCE)]
    assert "word" in changed.result(PATIENCE)
    with pytest.raises(ValueError, match="no style"):
        fleet.engine.update("ann", StreamSettings(style="no such style")).result(PATIENCE)
    fleet.engine.restart("ann").result(PATIENCE)
    outs += [answers[0].frames[-1], *fleet.push_all("ann", clip[10:])]

    stream = pipeline.stream(style="pencil", steps=1)
    expected = [stream.push(decode_frame(jpeg)) for jpeg in clip[:9]]
    stream.update(StreamSettings(style="neon", prompt="word " * 300, steps=1), blend=4)
    expected.append(stream.push(decode_frame(clip[9])))
    stream.restart()
    expected += [stream.push(decode_frame(jpeg)) for jpeg in clip[10:]]
    stream.close()
    assert outs == [jpeg_of(each[-1]) if each else b"" for each in expected]


def test_hostile_images_are_refused_by_the_front_and_affect_nobody(fleet):
    worker = fleet.open("ann", style="pencil")
    big = camera(5, 1)[0][:200].replace(b"\x00\x30\x00\x40", b"\xff\xff\xff\xff")
    for jpeg, words in ((b"no image", "not a readable"), (bytes(1_000_001), "limit"), (big, "image")):
        with pytest.raises(ValueError, match=words):
            fleet.push("ann", jpeg)
    assert worker.stats()["streams"] == 1 and fleet.push("ann", camera(5, 1)[0]).frames_in == 1


def test_at_most_four_calls_of_a_viewer_are_in_flight_and_the_newest_frame_waits(fleet):
    worker = fleet.open("ann", style="pencil", steps=1)
    clip = camera(6, 16)
    fleet.push_all("ann", clip[:9])
    os.kill(worker.announced.process, signal.SIGSTOP)
    try:
        stream, answers = fleet.engine.registry.get("ann").stream, []
        for tag, jpeg in enumerate(clip[9:], start=9):
            answers.append(fleet.engine.push("ann", jpeg, tag))
            wait_until(lambda tag=tag: len(stream.calls) == min(4, tag - 8))
        assert fleet.engine.registry.get("ann").waiting.tag == 15
    finally:
        os.kill(worker.announced.process, signal.SIGCONT)
    results = [answer.result(PATIENCE) for answer in answers]
    assert results[-1].tag == 15 and results[-1].frames


def end_by_ray(fleet, worker):
    ray.kill(worker.actor, no_restart=False)


def end_by_signal(fleet, worker):
    os.kill(worker.announced.process, signal.SIGKILL)


def end_the_node(fleet, worker):
    fleet.remove_node_of(worker)


def hang(fleet, worker):
    """Stop the process; with a frame on its way, the deadline passes."""
    fleet.engine.watch()
    wait_until(lambda: all(each.silence()[0] == 0 for each in fleet.engine.pool.ready()))
    os.kill(worker.announced.process, signal.SIGSTOP)
    fleet.engine.push("ann", camera(8, 1)[0])
    stream = fleet.engine.registry.get("ann").stream
    wait_until(lambda: stream.calls)
    fleet.clock.offset += 61
    fleet.engine.watch()


@pytest.mark.slow
@pytest.mark.parametrize("end", [end_by_ray, end_by_signal, end_the_node, hang])
def test_a_viewer_survives_the_worker_and_the_other_notices_nothing(fleet, pipeline, caplog, end):
    clip = camera(7, 40)
    worker = fleet.open("ann", style="pencil", seed=4, steps=2)
    other = fleet.open("bob", style="neon", seed=5)
    outs, others = fleet.push_all("ann", clip[:10]), fleet.push_all("bob", clip[:9])
    assert outs == alone(pipeline, clip[:10], style="pencil", seed=4, steps=2)

    caplog.set_level("INFO", "live2diff")
    end(fleet, worker)
    kept, since, answered = fleet.push_until_moved("ann", worker, clip[10:30])
    others += fleet.push_all("bob", clip[9:12])
    rest = fleet.push_all("ann", clip[30:])

    assert fleet.worker_of("ann") is fleet.worker_of("bob") is other
    assert kept == clip[: 10 + answered][-8:]
    expected = alone(pipeline, [*kept, *since, *clip[30:]], style="pencil", seed=4, steps=2)
    assert rest == expected[8 + len(since) :]
    assert others == alone(pipeline, clip[:12], style="neon", seed=5)
    [line] = [line for line in caplog.messages if line.startswith("moved")]
    assert f"from={worker.key} to={other.key} milliseconds=" in line
    # Ray may have started it again before its next call.
    assert any(reason in line for reason in (["no answer"] if end is hang else ["it died", "restarted"]))


def test_a_worker_that_owes_no_answer_is_never_given_up(fleet):
    worker = fleet.open("ann", style="pencil")
    fleet.engine.watch()
    wait_until(lambda: all(each.silence()[0] == 0 for each in fleet.engine.pool.ready()))
    fleet.clock.offset += 1000
    fleet.engine.watch()
    assert fleet.worker_of("ann") is worker and len(fleet.engine.pool.ready()) == 2


@pytest.mark.slow
def test_capacity_follows_the_workers_and_viewers_without_a_slot_are_first_in_line(fleet, monkeypatch):
    monkeypatch.setattr(fleet.engine, "admission", fleet.engine.admission)  # the line takes its place
    line = WaitingLine(fleet.engine, clock=lambda: 0.0)
    keys = ("ann", "bob", "cid", "dan")
    for key in keys:
        assert line.join(key).position == 0
        fleet.open(key, style="pencil")
    assert fleet.engine.capacity == 4 and line.join("eve").position == 1
    worker = fleet.worker_of("ann")
    losers = {key for key in keys if fleet.worker_of(key) is worker}
    assert len(losers) == 2
    os.kill(worker.announced.process, signal.SIGKILL)
    for key in losers:
        with pytest.raises(StreamClosed):
            while True:
                fleet.push(key, camera(9, 1)[0])
    assert fleet.engine.capacity == 2
    positions = {key: line.join(key).position for key in (*keys, "eve")}
    assert {positions[key] for key in losers} == {1, 2} and positions["eve"] == 3
    assert all(positions[key] == 0 for key in keys if key not in losers)
    fleet.wait_for_workers()
    assert all(line.join(key).position == 0 for key in losers) and line.join("eve").position == 1
    for key in losers:
        fleet.open(key, style="pencil")


@pytest.mark.slow
def test_a_worker_drains_without_a_gap(fleet, pipeline, caplog):
    caplog.set_level("INFO", "live2diff")
    clip = camera(10, 60)
    worker = fleet.open("ann", style="pencil", seed=6, steps=3)
    expected = alone(pipeline, clip[:20], style="pencil", seed=6, steps=3)
    assert fleet.push_all("ann", clip[:20]) == expected
    fleet.engine.drain(worker.key)
    assert fleet.engine.capacity == 2
    session = fleet.engine.registry.get("ann")
    wait_until(lambda: session.successor is not None and session.successor.frames_in == 8)
    shown, kept = [], clip[12:20]
    for number in range(20, 60):
        result = fleet.push("ann", clip[number], tag=number)
        assert len(result.frames) == 1, "a gap"
        shown.append((result.tag, result.frames[-1]))
        # A frame that comes while the new stream is busy would replace the one before it there.
        wait_until(lambda: session.successor is None or not session.successor.calls)
        if fleet.worker_of("ann") is not worker:
            break
    # The first two are of frames that had no tag.
    assert [tag for tag, _ in shown] == [None, None, *range(20, 18 + len(shown))]
    rest = fleet.push_all("ann", clip[number + 1 :])
    follower = alone(pipeline, [*kept, *clip[20:]], style="pencil", seed=6, steps=3)[8:]
    assert rest == follower[len(shown) :]
    wait_until(lambda: worker.key not in fleet.engine.pool.workers, fleet.engine.watch)
    assert any("reason=drain" in line for line in caplog.messages)


@pytest.mark.slow
def test_a_stream_that_takes_over_may_be_behind(fleet):
    clip = camera(13, 120)
    worker = fleet.open("ann", style="pencil", steps=1)
    fleet.push_all("ann", clip[:10])
    [other] = [each for each in fleet.engine.pool.ready() if each is not worker]
    fleet.engine.drain(worker.key)
    session = fleet.engine.registry.get("ann")
    wait_until(lambda: session.successor is not None and session.successor.frames_in == 8)
    os.kill(other.announced.process, signal.SIGSTOP)
    try:
        results = [fleet.push("ann", clip[number], number) for number in range(10, 20)]
        assert fleet.worker_of("ann") is worker
    finally:
        os.kill(other.announced.process, signal.SIGCONT)
    results += [fleet.push("ann", clip[number], number) for number in range(20, 40)]
    wait_until(lambda: fleet.worker_of("ann") is other)
    results += [fleet.push("ann", clip[number], number) for number in range(40, 50)]
    assert [result.tag for result in results] == [*range(10, 50)], "a gap"


@pytest.mark.slow
def test_the_drain_command_empties_a_node_for_its_upgrade(fleet, pipeline):
    clip = camera(12, 200)
    worker = fleet.open("ann", style="pencil")
    other = next(each for each in fleet.engine.pool.ready() if each is not worker)
    fleet.push_all("ann", clip[:10])
    command = [sys.executable, "-m", "live2diff.cluster.drain", "--cluster", fleet.cluster.address]
    unknown = subprocess.run([*command, "--node", "nowhere"], capture_output=True, text=True)
    assert unknown.returncode == 2 and "No worker of Live2Diff is on the node nowhere." in unknown.stderr

    drain = subprocess.Popen([*command, "--node", worker.announced.node], stdout=subprocess.PIPE, text=True)
    frames = iter(clip[10:])

    def step() -> None:
        fleet.engine.watch()
        if (jpeg := next(frames, None)) is not None:
            assert len(fleet.push("ann", jpeg).frames) == 1, "a gap"

    wait_until(lambda: fleet.worker_of("ann") is not worker and drain.poll() is not None, step)
    assert drain.wait() == 0 and "This node has no streams" in drain.communicate()[0]

    # The node is kept free until it is stopped; afterwards its worker counts again.
    assert fleet.worker_of("ann") is fleet.open("bob", style="pencil") is other
    assert {each.key for each in fleet.engine.pool.ready()} == {worker.key, other.key}
    assert fleet.engine.capacity == 2
    fleet.engine.close("bob").result(PATIENCE)
    fleet.remove_node_of(worker)
    fleet.wait_for_workers()
    wait_until(lambda: fleet.engine.capacity == 4, fleet.engine.watch)
    assert fleet.push("ann", clip[0]).frames


def test_styles_with_weights_of_their_own_run_side_by_side(fleet, pipeline):
    clip = camera(11, 12)
    first, second = fleet.open("ann", style="felt"), fleet.open("bob", style="glass")
    assert first is not second
    outs = [fleet.push_all(key, clip) for key in ("ann", "bob")]
    assert outs == [alone(pipeline, clip, style=style) for style in ("felt", "glass")] and outs[0] != outs[1]
    third = fleet.open("cid", style="glass")
    assert third is second, "the worker with the active style comes first"
    with pytest.raises(ValueError, match="other weights"):
        fleet.open("dan", style="pencil")
    with pytest.raises(ValueError, match="other weights"):
        fleet.engine.update("cid", StreamSettings(style="pencil")).result(PATIENCE)
    assert fleet.engine.update("cid", StreamSettings(style="felt")).result(PATIENCE) == ""
    assert fleet.worker_of("cid") is first, "the viewer goes where the style is"


@pytest.mark.slow
def test_a_clip_survives_its_worker(fleet, pipeline):
    clip = frames(12, 30)
    settings = {"style": "pencil", "seed": 7, "steps": 3}
    with fleet.engine.clip("ann/clip", StreamSettings(**settings)) as stream:
        outs = [out for frame in clip[:15] for out in stream.push(frame)]
        worker = next(worker for worker in fleet.engine.pool.ready() if worker.streams)
        os.kill(worker.announced.process, signal.SIGKILL)
        outs += [out for frame in clip[15:] for out in stream.push(frame)] + stream.flush()
        assert next(other for other in fleet.engine.pool.ready() if other.streams) is not worker
    expected = list(pipeline(clip, **settings))
    assert len(outs) == len(expected) == 30
    assert_same(outs[:13], expected[:13])


def test_fifty_viewers_who_come_and_go_leave_nothing_behind(fleet):
    def state():
        gc.collect()
        workers = [worker.announced.process for worker in fleet.engine.pool.ready()]
        files = [len(os.listdir(f"/proc/{process}/fd")) for process in (os.getpid(), *workers)]
        total, free = (
            get()["object_store_memory"] for get in (ray.cluster_resources, ray.available_resources)
        )
        return threading.active_count(), files, total - free

    def visit(key):
        fleet.open(key, style="pencil")
        fleet.push_all(key, camera(13, 1))
        fleet.engine.close(key).result(PATIENCE)

    for number in range(5):
        visit(f"early {number}")
    threads, files, stored = state()
    for number in range(50):
        visit(f"viewer {number}")
    wait_until(lambda: state()[0] <= threads + 1)
    more = [now - before for now, before in zip(state()[1], files, strict=True)]
    assert max(more) <= 3 and state()[2] <= stored
    assert fleet.engine.registry.all() == [] and fleet.engine.capacity == 4
    workers = fleet.engine.pool.ready()
    wait_until(lambda: all((each.state().streams, each.silence()[0]) == (0, 0) for each in workers))


def test_health_and_metrics_have_figures_of_each_worker(fleet):
    from starlette.applications import Starlette
    from starlette.testclient import TestClient

    from live2diff.cluster.metrics import metric_routes

    worker = fleet.open("ann", style="pencil", steps=1)
    fleet.push_all("ann", camera(14, 10))
    with TestClient(Starlette(routes=metric_routes(fleet.engine))) as client:
        text, health = client.get("/metrics"), client.get("/health")
    assert text.headers["content-type"].startswith("text/plain")
    assert f'live2diff_worker_streams{{worker="{worker.key}"}} 1.0' in text.text
    assert f'live2diff_worker_suspect{{worker="{worker.key}"}} 0.0' in text.text
    assert f'live2diff_worker_delay_seconds{{quantile="0.95",worker="{worker.key}"}}' in text.text
    assert "live2diff_capacity 4.0" in text.text
    assert health.status_code == 200 and health.json()["workers"][worker.key]["fps"] > 0
