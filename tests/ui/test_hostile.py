"""Hostile input: broken clips, clips with false headers, strange prompts.

Each costs bounded time, memory and disk, and ends in a clip or in a plain sentence.
"""

import json
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from helpers.paths import ROOT

from live2diff.__main__ import main
from live2diff.errors import ClipError
from live2diff.serving.clip_queue import LIMITS, ClipQueue
from live2diff.serving.engine import Engine
from live2diff.streaming.settings import StreamSettings
from live2diff.video.reader import Cut, probe

KINDS = (
    ("h264.mp4", "libx264", "yuv420p", "aac"),
    ("vp9.webm", "libvpx-vp9", "yuv420p", "libopus"),
    ("h264.mkv", "libx264", "yuv420p", "aac"),
    ("mjpeg.avi", "mjpeg", "yuvj420p", "mp3"),
    ("mpeg4.mov", "mpeg4", "yuv420p", "pcm_s16le"),
    ("animated.gif", "gif", "rgb8", None),
    ("h264.ts", "libx264", "yuv420p", None),
)


def image(number: int) -> np.ndarray:
    grid = np.mgrid[0:48, 0:64].sum(axis=0) * 3 + number * 5
    return np.repeat((grid % 256).astype(np.uint8)[..., None], 3, axis=2)


def write_clip(
    path: Path, codec: str, pixels: str, sound: str | None, frames: int = 20, rate: int = 25, first: int = 0
) -> Path:
    """Write a small good clip; `first` is the number of its first frame."""
    with av.open(str(path), "w") as container:
        options = {"g": "10", "bf": "0"} if codec == "libx264" else {"g": "10"}
        video = container.add_stream(codec, rate=rate, options=options)
        video.width, video.height, video.pix_fmt = 64, 48, pixels
        track = container.add_stream(sound, rate=48_000) if sound else None
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(image(number), format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = number + first, Fraction(1, rate)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if track is not None:
            noise = np.random.default_rng(0).normal(0, 0.1, (1, 24_000)).astype(np.float32)
            sound_frame = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
            sound_frame.sample_rate = 48_000
            container.mux(track.encode(sound_frame))
            container.mux(track.encode(None))
    return path


def drop_first_packets(source: Path, target: Path, count: int) -> Path:
    """Copy a clip without its first packets, so that it starts without a keyframe."""
    with av.open(str(source)) as original, av.open(str(target), "w") as container:
        track = original.streams.video[0]
        copy = container.add_stream_from_template(track)
        for number, packet in enumerate(original.demux(track)):
            if number >= count and packet.dts is not None:
                packet.stream = copy
                container.mux(packet)
    return target


def png_that_claims(width: int, height: int) -> bytes:
    """Return a PNG whose header claims a size, with a few bytes of image."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pieces = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100_000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + pieces


def claim_size(data: bytes, width: int, height: int) -> bytes:
    """Change the size in the headers of an mp4 or mov of 64x48."""
    small = struct.pack(">HH", 64, 48)
    large = struct.pack(">HH", min(width, 65535), min(height, 65535))
    return data.replace(
        struct.pack(">II", 64 << 16, 48 << 16), struct.pack(">II", width << 15, height << 15)
    ).replace(small, large)


def known(folder: Path) -> Iterator[Path]:
    """Yield good files and files that are bad in a known way."""

    def file(name: str, data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    good = {name: write_clip(folder / name, *how) for name, *how in KINDS}
    yield from good.values()
    for name, path in good.items():
        data = path.read_bytes()
        for share in (0.02, 0.6, 0.98):
            yield file(f"cut-at-{share}-{name}", data[: int(len(data) * share)])
        yield file(f"no-beginning-{name}", data[len(data) // 3 :])
        yield file(
            f"zeros-inside-{name}", data[: len(data) // 2] + bytes(2000) + data[len(data) // 2 + 2000 :]
        )
    mp4 = good["h264.mp4"].read_bytes()
    yield file("claims-100000.mp4", claim_size(mp4, 65535, 65535))
    yield file("claims-100000.mov", claim_size(good["mpeg4.mov"].read_bytes(), 65535, 65535))
    yield file("claims-100000.png", png_that_claims(100_000, 100_000))
    yield file("claims-4000.png", png_that_claims(4000, 4000))
    gif = good["animated.gif"].read_bytes()
    yield file("claims-65535.gif", gif[:6] + struct.pack("<HH", 65535, 65535) + gif[10:])
    yield file("bomb.gif", gif[:6] + struct.pack("<HH", 8000, 8000) + gif[10:])
    yield file(
        "claims-2-billion-frames.mp4", mp4.replace(b"stts\0\0\0\0\0\0\0\1", b"stts\0\0\0\0\x7f\xff\xff\xff")
    )
    yield file("endless.ts", good["h264.ts"].read_bytes() * 100)
    yield file("endless.gif", gif[:-1] + gif[gif.index(b"!\xf9") : -1] * 100 + b";")
    yield write_clip(folder / "long.mp4", "libx264", "yuv420p", None, frames=400)
    yield write_clip(folder / "10000-fps.mkv", "mjpeg", "yuvj420p", None, rate=10_000)
    yield write_clip(folder / "10000-fps.mp4", "libx264", "yuv420p", None, rate=10_000)
    yield write_clip(
        folder / "one-frame-an-hour.mkv", "mjpeg", "yuvj420p", None, frames=2, rate=1, first=3600
    )
    yield write_clip(folder / "before-zero.mkv", "mjpeg", "yuvj420p", None, first=-10)
    yield write_clip(folder / "before-zero.mp4", "libx264", "yuv420p", "aac", first=-10)
    yield drop_first_packets(good["h264.mkv"], folder / "no-keyframe.mkv", 1)
    yield drop_first_packets(good["vp9.webm"], folder / "no-keyframe.webm", 3)
    yield file("executable.mp4", Path(sys.executable).resolve().read_bytes()[:200_000])
    yield file("text.mp4", b"not a video\n" * 500)
    yield file("page.mp4", b"<html><script>alert(1)</script></html>")
    yield file("archive.mp4", b"PK\x03\x04" + bytes(3000))
    yield file("noise.webm", random.Random(0).randbytes(50_000))
    yield file("nothing.mp4", b"")
    yield file("one-byte.mp4", b"\0")
    for name in ("list.m3u8", "list.mp4"):
        yield file(name, b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nh264.ts\n#EXT-X-ENDLIST\n")
    yield file("concat.mp4", b"ffconcat version 1.0\nfile h264.mp4\n")


def corrupted(folder: Path, count: int, seed: int) -> Iterator[Path]:
    """Yield good clips with bytes changed, left out, or repeated at random, mostly in their headers."""
    dice = random.Random(seed)
    good = [(name, write_clip(folder / name, *how).read_bytes()) for name, *how in KINDS]
    for number in range(count):
        name, original = dice.choice(good)
        data = bytearray(original)
        for _ in range(dice.choice([1, 1, 3, 10, 100])):
            at = dice.randrange(dice.choice([64, 1000, len(data)])) % len(data)
            match dice.randrange(5):
                case 0 | 1:
                    data[at] ^= 1 << dice.randrange(8)
                case 2:
                    data[at : at + 4] = dice.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4)])
                case 3:
                    del data[at : at + dice.randrange(1, 50)]
                case 4:
                    data[at:at] = data[at : at + dice.randrange(1, 50)]
        path = folder / f"corrupted-{seed}-{number}-{name}"
        path.write_bytes(data)
        yield path


def outcomes(folder: Path, paths: list[Path]) -> list[dict]:
    """Return the results of `read_hostile.py`; a crash, a hang or a full memory names the file and fails."""
    work = folder / "work"
    work.mkdir()
    process = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "helpers" / "read_hostile.py"), str(work)],
        input="".join(f"{path}\n" for path in paths),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""},
    )
    lines = [json.loads(line) for line in process.stdout.splitlines()]
    assert process.returncode == 0, (
        f"ended at {lines[-1]} with {process.returncode}: {process.stderr[-2000:]}"
    )
    return [line for line in lines if "name" in line]


def check(results: list[dict], count: int) -> None:
    assert len(results) == count
    for result in results:
        made = result["outcome"] == "made"
        assert made or len(result["outcome"]) > 30, result
        assert (result["bytes"] > 0) == made and result["left"] == [], result
        assert result["seconds"] < 20 and result["peak_mb"] < 1500 and result["bytes"] < 20e6, result


def test_broken_files_end_in_a_clip_or_a_sentence_within_bounds(tmp_path):
    paths = [*known(tmp_path), *corrupted(tmp_path, 15, seed=0)]
    results = outcomes(tmp_path, paths)
    check(results, len(paths))
    outcome = {result["name"]: result["outcome"] for result in results}
    strange = [
        "10000-fps.mkv",
        "10000-fps.mp4",
        "before-zero.mkv",
        "before-zero.mp4",
        "one-frame-an-hour.mkv",
    ]
    for name in (*strange, *(name for name, *_ in KINDS)):
        assert outcome[name] == "made", outcome[name]
    for name in (
        "executable.mp4",
        "text.mp4",
        "page.mp4",
        "archive.mp4",
        "noise.webm",
        "list.m3u8",
        "list.mp4",
    ):
        assert "is not a video that can be read" in outcome[name]
    for name in ("claims-100000.png", "claims-65535.gif", "bomb.gif", "claims-4000.png"):
        assert outcome[name].startswith("refused"), outcome[name]
    for name in ("endless.ts", "endless.gif", "long.mp4"):
        assert "more than 300 frames" in outcome[name] or "longer than" in outcome[name], outcome[name]


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 21))
def test_a_hundred_corrupted_clips_end_in_a_clip_or_a_sentence_within_bounds(tmp_path, seed):
    results = outcomes(tmp_path, list(corrupted(tmp_path, 100, seed)))
    check(results, 100)
    made = sum(result["outcome"] == "made" for result in results)
    slowest, peak = (max(result[name] for result in results) for name in ("seconds", "peak_mb"))
    print(f"{seed}: {made} made, {100 - made} refused, slowest {slowest} s, peak {peak} MB")


WORDS = {
    "null bytes": "a\0cat\0",
    "right to left": "\u202egnp.exe\u202c \u05d7\u05ea\u05d5\u05dc",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "surrogates": "\ud800 alone",
    "emoji": "👩‍👩‍👧‍👦" * 50,
    "combining": "e" + "\u0301" * 1000,
    "format": "%s%n{0}{x.__class__}${jndi:ldap://x}",
    "path": "../../etc/passwd; rm -rf /",
    "only spaces": " \t\n\r\u3000",
}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_strange_prompts_are_accepted(tiny_pipeline, words):
    for stream in (tiny_pipeline.stream(prompt=words), tiny_pipeline.stream(style="pencil", prompt=words)):
        assert isinstance(stream.ignored_words, str)
        stream.update(prompt=words[::-1])
        stream.close()
    for wrong in (words, "no-such-style"):
        with pytest.raises(ValueError, match="style"):
            tiny_pipeline.stream(style=wrong)


def test_a_megabyte_of_prompt_is_rejected_at_once(tiny_pipeline):
    with pytest.raises(ValueError, match="1000000 characters; at most 4000"):
        tiny_pipeline.stream(prompt="x" * 1_000_000)
    stream = tiny_pipeline.stream()
    with pytest.raises(ValueError, match="1000000 characters"):
        stream.update(prompt="x" * 1_000_000)


@pytest.fixture(scope="module")
def client(address, tmp_path_factory) -> Client:
    return Client(address, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    _, *how = KINDS[0]
    return write_clip(tmp_path_factory.mktemp("clip") / "good.mp4", *how, frames=3)


@pytest.mark.parametrize("name", ["null bytes", "right to left", "html", "format"])
def test_strange_prompts_in_a_request_are_accepted(client, clip, capfd, name):
    words = WORDS[name]
    made = client.predict(clip=handle_file(clip), style="pencil", prompt=words, api_name="/translate")
    assert probe(made).frame_count == 3
    with pytest.raises(AppError) as raised:
        client.predict(clip=handle_file(clip), style=words, api_name="/translate")
    assert "pencil" in str(raised.value), "it lists the styles"
    assert "Traceback" not in capfd.readouterr().err


def test_half_a_character_in_a_request_is_rejected_or_accepted(address, client, clip):
    """By hand, as Gradio's client cannot send it."""
    uploaded = httpx.post(f"{address}gradio_api/upload", files={"files": clip.open("rb")}).json()[0]
    file = {"path": uploaded, "meta": {"_type": "gradio.FileData"}}
    data = json.dumps({"data": [file, "pencil", WORDS["surrogates"], 0, 0, 0, 0, 0]})
    answer = httpx.post(
        f"{address}gradio_api/call/translate", content=data, headers={"content-type": "application/json"}
    )
    assert answer.status_code in (200, 400, 422), answer.text
    if answer.status_code == 200:
        events = httpx.get(
            f"{address}gradio_api/call/translate/{answer.json()['event_id']}", timeout=180
        ).text
        assert "event: complete" in events, events
    assert client.predict(api_name="/health")["clips"] == 0


def test_a_megabyte_of_prompt_in_a_request_is_rejected_in_a_sentence(client, clip, capfd):
    with pytest.raises(AppError, match="1000000 characters; at most 4000"):
        client.predict(clip=handle_file(clip), prompt="x" * 1_000_000, api_name="/translate")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("text.mp4", b"not a video\n" * 500),
        ("half.mp4", None),
        ("<img src=x onerror=alert(1)>.mp4", b"<script>alert(1)</script>"),
        ("nothing.mp4", b""),
    ],
    ids=["text", "cut in half", "html", "nothing"],
)
def test_a_file_in_a_request_that_is_no_clip_is_rejected(client, clip, tmp_path, capfd, name, data):
    path = tmp_path / name
    whole = clip.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if data is None else data)
    with pytest.raises(AppError, match=r"is not a video that can be read|is empty") as raised:
        client.predict(clip=handle_file(path), style="pencil", api_name="/translate")
    assert "<img" not in str(raised.value) and str(tmp_path) not in str(raised.value)
    assert "Traceback" not in capfd.readouterr().err


def test_the_length_of_a_clip_is_limited_in_every_entry_point(tmp_path, tiny_pipeline, capsys):
    """The page and the endpoints use `ClipQueue`; the command line has its own limits."""
    source = tmp_path / "hour.mkv"
    with av.open(str(source), "w") as container:
        video = container.add_stream("mjpeg", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuvj420p"
        for seconds in (0, 3600):
            frame = av.VideoFrame.from_ndarray(image(0), format="rgb24").reformat(format="yuvj420p")
            frame.pts, frame.time_base = seconds * 25, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    assert main([str(source), str(tmp_path / "out.mp4"), "--model", "nano"]) == 2
    assert "longer than 600 seconds" in capsys.readouterr().err
    engine = Engine(tiny_pipeline)
    for limits, words in (
        (LIMITS, "longer than 60 seconds"),
        (replace(LIMITS, max_seconds=5000.0, max_frames=1), "more than 1 frames"),
        (replace(LIMITS, max_pixels=1000), "megapixels"),
        (replace(LIMITS, max_bytes=1000), "MB"),
    ):
        jobs = ClipQueue(engine, tmp_path / "results", limits)
        with pytest.raises(ClipError, match=words):
            list(jobs.run("key", source, jobs.new_result(), Cut(), StreamSettings(style="pencil")))
    engine.shutdown()
    assert not list((tmp_path / "results").iterdir())
