"""What the Live tab makes of the pictures that a browser, or somebody else, sends."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image

from live2diff.styles import Style
from live2diff.ui.live_protocol import LARGEST_FRAME, decode_frame, encode_frame
from live2diff.ui.live_tab import page_script, sample, thumbnail

PICTURE = cv2.circle(np.full((240, 320, 3), 225, np.uint8), (90, 120), 70, (160, 30, 40), -1)


def jpeg(change: Callable[[bytes], bytes] = lambda data: data) -> bytes:
    return change(cv2.imencode(".jpg", PICTURE)[1].tobytes())


def promise_enormous_size(data: bytes) -> bytes:
    start = data.index(b"\xff\xc0") + 5  # height and width in the header
    return data[:start] + b"\xff\xdc\xff\xdc" + data[start + 4 :]


def test_a_frame_survives_the_way_to_the_server_and_back():
    frame = decode_frame(encode_frame(PICTURE))
    assert frame.shape == (240, 320, 3) and frame.dtype == np.uint8
    assert np.abs(frame.astype(int) - PICTURE).mean() < 3


@pytest.mark.parametrize(
    "hostile",
    [
        b"",
        cv2.imencode(".png", PICTURE)[1].tobytes(),
        bytes(LARGEST_FRAME + 1),
        jpeg(lambda data: b"GIF89a" + data),
        jpeg(lambda data: data[:30]),
        jpeg(promise_enormous_size),
    ],
    ids=["empty", "png", "too long", "not a jpeg", "cut off", "enormous"],
)
def test_what_is_no_camera_frame_is_refused_with_words(hostile):
    with pytest.raises(ValueError, match="The camera frame"):
        decode_frame(hostile)


def test_a_style_is_chosen_by_a_small_picture_or_by_its_title_alone(tmp_path):
    file = tmp_path / "mine.png"
    Image.new("RGBA", (1600, 1200), "red").save(file)
    url = thumbnail("mine", Style("Mine", thumbnail=str(file)))
    assert url.startswith("data:image/jpeg;base64,") and len(url) < 10_000
    assert thumbnail("../mine", Style("Mine")) == ""
    assert sample("pencil").endswith("/large/pencil.jpg") and sample("../mine") == ""


def test_the_page_asks_no_address_but_our_own():
    script = page_script()
    assert "http://" not in script and "https://" not in script
