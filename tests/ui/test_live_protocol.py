"""Messages and frames of the Live tab's socket, and what its page is made of."""

import json
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from helpers.live_socket import claim_enormous_size
from PIL import Image

from live2diff.streaming.images import JPEG_QUALITY, LARGEST_FRAME, decode_frame, encode_jpeg
from live2diff.streaming.settings import StreamSettings
from live2diff.styles import Style
from live2diff.ui.live_protocol import (
    LONGEST_TEXT,
    Restart,
    Start,
    Stop,
    Update,
    parse_message,
)
from live2diff.ui.live_tab import page_script, style_entry

IMAGE = cv2.circle(np.full((240, 320, 3), 225, np.uint8), (90, 120), 70, (160, 30, 40), -1)
SETTINGS = {"style": "pencil", "prompt": "a ball", "seed": 3}


def jpeg(change: Callable[[bytes], bytes] = lambda data: data) -> bytes:
    return change(cv2.imencode(".jpg", IMAGE)[1].tobytes())


def test_messages_of_the_page_are_parsed():
    start = parse_message(json.dumps({"start": SETTINGS}))
    assert isinstance(start, Start) and start.start == StreamSettings(**SETTINGS)
    update = parse_message(json.dumps({"update": SETTINGS | {"unknown": 1}}))
    assert isinstance(update, Update) and update.update == StreamSettings(**SETTINGS)
    half_an_emoji = parse_message('{"update": {"style": "oil", "prompt": "\\ud800"}}')
    assert isinstance(half_an_emoji, Update) and half_an_emoji.update.prompt == "?"
    assert isinstance(parse_message('{"restart": true}'), Restart)
    assert isinstance(parse_message('{"stop": true}'), Stop)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({"start": SETTINGS | {"steps": 9}}), "steps is 9; it must be 1, 2, 3 or 4"),
        (json.dumps({"update": {"style": "oil"}}), "Styles and prompts are texts of at most 2000 characters"),
        (json.dumps({"start": []}), "not an object"),
        ('{"dance": true}', "message is unknown"),
        ("[1]", "message is unknown"),
        ("{", "not JSON"),
        ("[" * 15_000, "not JSON"),
        ("x" * (LONGEST_TEXT + 1), "20001 characters, the limit is 20000"),
    ],
    ids=["setting", "missing", "no object", "unknown", "list", "no JSON", "deep", "long"],
)
def test_anything_else_is_rejected_with_a_reason(text, message):
    with pytest.raises(ValueError, match=message):
        parse_message(text)


def test_a_frame_survives_encoding_and_decoding():
    frame = decode_frame(encode_jpeg(IMAGE, JPEG_QUALITY))
    assert frame.shape == (240, 320, 3) and frame.dtype == np.uint8
    assert np.abs(frame.astype(int) - IMAGE).mean() < 3


@pytest.mark.parametrize(
    "hostile",
    [
        b"",
        cv2.imencode(".png", IMAGE)[1].tobytes(),
        bytes(LARGEST_FRAME + 1),
        jpeg(lambda data: b"GIF89a" + data),
        jpeg(lambda data: data[:30]),
        jpeg(claim_enormous_size),
    ],
    ids=["empty", "png", "too long", "not a jpeg", "cut off", "enormous"],
)
def test_frames_that_are_no_jpeg_are_rejected_with_a_reason(hostile):
    with pytest.raises(ValueError, match=r"The (camera frame|image)"):
        decode_frame(hostile)


def test_a_style_has_a_thumbnail_and_a_sample_or_its_title_alone(tmp_path):
    file = tmp_path / "my #1.png"
    Image.new("RGBA", (160, 120), "red").save(file)
    entry = style_entry("mine", Style("Mine", thumbnail=str(file)), "mine")
    assert entry["thumbnail"].endswith("/my%20%231.png") and entry["checked"] == "checked"
    entry = style_entry("../mine", Style("Mine"), "pencil")
    assert (entry["title"], entry["thumbnail"], entry["sample"], entry["checked"]) == ("Mine", "", "", "")
    assert style_entry("pencil", Style("Pencil"), "")["sample"].endswith("/large/pencil.jpg")


def test_the_page_names_no_other_server():
    script = page_script()
    assert "http://" not in script and "https://" not in script
