"""`Stream.push` takes any uint8 RGB frame and refuses others with advice; the clip reader converts."""

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from live2diff.video.reader import read_frames

COLOUR = np.dstack(np.meshgrid(np.linspace(20, 220, 64), np.linspace(30, 200, 48))).astype(np.uint8)
COLOUR = np.dstack([COLOUR, np.full((48, 64), 90, np.uint8)])


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (np.dstack([COLOUR, COLOUR[..., :1]]), "alpha channel: frame"),
        (COLOUR[..., 0], "grey channel: np.repeat"),
        (COLOUR[..., :1], "grey channel: np.repeat"),
        (COLOUR.astype(np.uint16), "upper 8 bits"),
        (COLOUR / 255, "0..1"),
        (COLOUR[:0], "must have pixels"),
        (COLOUR.astype(np.int64), "int64"),
        (COLOUR[..., :2], r"uint8 \[48, 64, 2\]"),
        ([[1, 2, 3]], "this is list"),
    ],
)
def test_a_stream_refuses_a_bad_frame_with_advice_and_goes_on(tiny_pipeline, frame, words):
    stream = tiny_pipeline.stream(steps=1)
    stream.push(COLOUR)
    with pytest.raises(ValueError, match=words):
        stream.push(frame)
    stream.push(COLOUR)
    assert stream.frames_in == 2


def test_frames_of_any_and_changing_size_and_memory_layout_give_one_frame_each(tiny_pipeline):
    frames = [
        COLOUR,
        COLOUR[::-1, ::2],  # not in one piece
        np.asfortranarray(COLOUR),
        np.full((1, 1, 3), 200, np.uint8),
        np.full((1, 500, 3), 200, np.uint8),
        np.broadcast_to(np.uint8(9), (300, 200, 3)),
        np.frombuffer(COLOUR.tobytes(), np.uint8).reshape(COLOUR.shape),  # not to be written to
    ]
    for first in (0, 3):  # also as the first, which decides the working size
        stream, order = tiny_pipeline.stream(steps=1, size=16), frames[first:] + frames[:first]
        given = [out for frame in order for out in stream.push(frame)] + stream.flush()
        assert [out.shape for out in given] == [frame.shape for frame in order]


@pytest.mark.long
def test_a_frame_may_have_a_hundred_megapixels(tiny_pipeline):
    stream = tiny_pipeline.stream(steps=1)
    stream.push(np.zeros((10_000, 10_000, 3), np.uint8))
    (given,) = stream.flush()
    assert given.shape == (10_000, 10_000, 3)


@pytest.mark.parametrize(
    ("codec", "pixels"), [("ffv1", "gray"), ("ffv1", "gray16le"), ("ffv1", "bgra"), ("ffv1", "rgba64le")]
)
def test_a_clip_of_grey_deep_or_transparent_images_is_read_as_rgb(tmp_path: Path, codec, pixels):
    path = tmp_path / "in.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, pixels
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(COLOUR, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    expected = COLOUR.astype(int)
    if pixels.startswith("gray"):
        expected = np.repeat(cv2.cvtColor(COLOUR, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2).astype(int)
    for image, _ in read_frames(path):
        assert np.abs(image - expected).max() <= 4
