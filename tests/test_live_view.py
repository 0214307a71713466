"""What the Live tab's server functions make of the pictures that a browser, or somebody else, sends."""

import base64
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from live2diff.live_view import JPEG_PREFIX, decode_frame, encode_frame

PICTURE = cv2.circle(np.full((240, 320, 3), 225, np.uint8), (90, 120), 70, (160, 30, 40), -1)


def jpeg_url(change: Callable[[bytes], bytes] = lambda data: data) -> str:
    data = cv2.imencode(".jpg", PICTURE)[1].tobytes()
    return JPEG_PREFIX + base64.b64encode(change(data)).decode()


def promise_enormous_size(data: bytes) -> bytes:
    start = data.index(b"\xff\xc0") + 5  # height and width in the header
    return data[:start] + b"\xff\xdc\xff\xdc" + data[start + 4 :]


def test_a_frame_survives_the_way_to_the_server_and_back():
    frame = decode_frame(jpeg_url())
    assert frame.shape == (240, 320, 3) and frame.dtype == np.uint8
    assert np.abs(decode_frame(encode_frame(frame)).astype(int) - frame).mean() < 3


@pytest.mark.parametrize(
    "hostile",
    [
        None,
        "data:image/png;base64,AAAA",
        JPEG_PREFIX,
        JPEG_PREFIX + "not base64!",
        JPEG_PREFIX + "A" * 2_000_000,
        jpeg_url(lambda data: b"GIF89a" + data),
        jpeg_url(lambda data: data[:30]),
        jpeg_url(promise_enormous_size),
    ],
    ids=["none", "png", "empty", "not base64", "too long", "not a jpeg", "cut off", "enormous"],
)
def test_what_is_no_camera_frame_is_refused_with_words(hostile):
    with pytest.raises(ValueError, match="The camera frame"):
        decode_frame(hostile)
