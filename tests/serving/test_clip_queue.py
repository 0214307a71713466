"""The queue of clips: the order of clips, and how a waiting one is cancelled."""

import threading
from collections.abc import Iterator

import pytest
from helpers.clips import write_clip
from helpers.waiting import PATIENCE

from live2diff.errors import ClipStopped
from live2diff.serving.clip_queue import ClipQueue, Waiting
from live2diff.serving.engine import Engine
from live2diff.streaming.settings import StreamSettings
from live2diff.styles import Style
from live2diff.video.reader import Cut
from live2diff.video.translate import Progress

WHOLE = Cut(0, None)
NEON = StreamSettings(style="neon", steps=1)


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.mp4", 9)


@pytest.fixture
def engine(tiny_pipeline) -> Iterator[Engine]:
    engine = Engine(tiny_pipeline)
    yield engine
    engine.shutdown()


@pytest.fixture
def jobs(engine, tmp_path) -> ClipQueue:
    return ClipQueue(engine, tmp_path / "results")


class SlowDownload:
    """A download of "comic" that lasts until the test lets it go on."""

    def __init__(self, pipe, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        monkeypatch.setitem(pipe.styles, "comic", Style("Comic", "{}", loras=(("comic.safetensors", 1.0),)))
        monkeypatch.setattr(pipe, "fetch", self.fetch)

    def fetch(self, style: str | None) -> None:
        if style == "comic":
            self.began.set()
            assert self.go_on.wait(PATIENCE)


@pytest.fixture
def download(tiny_pipeline, monkeypatch) -> Iterator[SlowDownload]:
    download = SlowDownload(tiny_pipeline, monkeypatch)
    yield download
    download.go_on.set()


def in_thread(steps: Iterator) -> tuple[threading.Thread, list]:
    """Run a clip to its end; the list holds its steps, or the error that ended it."""
    ended: list = []

    def run() -> None:
        try:
            ended.extend(steps)
        except ClipStopped as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, ended


def test_a_download_does_not_keep_the_clips_of_others_waiting(jobs, clip, download):
    slow = jobs.run("ann", clip, jobs.new_result(), WHOLE, StreamSettings(style="comic", steps=1))
    thread, ended = in_thread(slow)
    assert download.began.wait(PATIENCE)
    steps = list(jobs.run("bob", clip, jobs.new_result(), WHOLE, NEON))
    assert not any(isinstance(step, Waiting) for step in steps) and steps[-1].written == 9
    assert not ended
    download.go_on.set()
    thread.join(PATIENCE)
    assert ended[-1].written == 9


def test_a_clip_can_be_cancelled_during_its_download(jobs, clip, download):
    slow = jobs.run("ann", clip, jobs.new_result(), WHOLE, StreamSettings(style="comic", steps=1))
    thread, ended = in_thread(slow)
    assert download.began.wait(PATIENCE)
    jobs.stop("ann")
    thread.join(PATIENCE)
    assert [str(error) for error in ended] == ["Cancelled."]


def test_clips_take_turns_and_one_that_waits_can_be_cancelled(jobs, engine, clip):
    first = jobs.run("ann", clip, jobs.new_result(), WHOLE, NEON)
    assert isinstance(next(first), Progress)
    second, third = (jobs.run(key, clip, jobs.new_result(), WHOLE, NEON) for key in ("bob", "cid"))
    assert [next(second), next(third)] == [Waiting(1), Waiting(2)]
    jobs.stop("bob")
    with pytest.raises(ClipStopped, match="Cancelled"):
        next(second)
    assert next(third) == Waiting(1)
    first.close()
    assert isinstance(next(third), Progress)
    third.close()
    assert engine.stats()["clips"] == 0
