"""Frame checks, resizing and JPEG."""

import io
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from live2diff.streaming.images import (
    LARGEST_FRAME,
    LONGEST_SIDE,
    check_frame,
    check_frame_jpeg,
    decode_frame,
    decode_jpeg,
    download,
    encode_jpeg,
    limit_side,
    resize,
    upload,
)

COLOUR = np.dstack(np.meshgrid(np.linspace(20, 220, 64), np.linspace(30, 200, 48))).astype(np.uint8)
COLOUR = np.dstack([COLOUR, np.full((48, 64), 90, np.uint8)])


def declare_size(jpeg: bytes, width: int, height: int) -> bytes:
    """Return a JPEG whose header declares another size than its data has."""
    start = jpeg.index(b"\xff\xc0") + 5  # marker, length, precision
    return jpeg[:start] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + jpeg[start + 4 :]


def test_the_advice_for_a_bad_frame_gives_a_good_one():
    grey = COLOUR[..., 0]
    for frame in (
        np.dstack([COLOUR, COLOUR[..., :1]])[..., :3],
        np.repeat(grey.reshape(*grey.shape[:2], 1), 3, axis=2),
        (COLOUR.astype(np.uint16) * 257 >> 8).astype(np.uint8),
        (COLOUR / 255 * 255).round().astype(np.uint8),
    ):
        check_frame(frame)


def test_resizing_keeps_the_mean_and_the_layout():
    for shape in ((48, 64), (24, 32), (7, 5), (96, 200), (1, 1)):
        resized = resize(COLOUR, shape)
        assert resized.shape == (*shape, 3) and resized.dtype == np.uint8 and resized.flags.c_contiguous
        np.testing.assert_allclose(resized.mean((0, 1)), COLOUR.mean((0, 1)), atol=3)


@pytest.mark.parametrize(
    ("longest_side", "shape"), [(32, (24, 32)), (64, (48, 64)), (500, (48, 64)), (1, (1, 1))]
)
def test_a_longest_side_shrinks_and_never_enlarges(longest_side, shape):
    assert limit_side(COLOUR, longest_side).shape[:2] == shape
    assert limit_side(COLOUR.transpose(1, 0, 2), longest_side).shape[:2] == shape[::-1]


def test_a_jpeg_comes_back_in_colour_and_a_higher_quality_is_closer():
    errors = []
    for quality in (40, 95):
        decoded = decode_jpeg(encode_jpeg(COLOUR, quality), 64)
        assert decoded.shape == COLOUR.shape and decoded.dtype == np.uint8
        errors.append(np.abs(decoded.astype(int) - COLOUR).mean())
    assert errors[1] < errors[0] and errors[1] < 2


def test_grey_progressive_and_tiny_jpegs_are_decoded_to_rgb():
    grey = cv2.imencode(".jpg", COLOUR[..., 0])[1].tobytes()
    progressive = io.BytesIO()
    Image.fromarray(COLOUR).save(progressive, "JPEG", progressive=True)
    assert decode_jpeg(grey, 64).shape == decode_jpeg(progressive.getvalue(), 64).shape == (48, 64, 3)
    assert decode_jpeg(encode_jpeg(COLOUR[:1, :1], 90), 64).shape == (1, 1, 3)


def test_a_large_jpeg_is_refused_by_its_header_alone():
    with pytest.raises(ValueError, match="64x10000, the limit is 1280"):
        decode_jpeg(encode_jpeg(np.zeros((10_000, 64, 3), np.uint8), 90), 1280)
    promising = declare_size(encode_jpeg(COLOUR, 90), 65_500, 65_500)
    assert len(promising) < 10_000
    with pytest.raises(ValueError, match=r"65500x65500, the limit|not a readable JPEG"):
        decode_jpeg(promising, 1280)


def test_anything_but_a_jpeg_is_a_value_error():
    jpeg = encode_jpeg(COLOUR, 90)
    png = cv2.imencode(".png", COLOUR)[1].tobytes()
    for data in (b"", b"\xff", b"\xff\xd8\xff", png, b"GIF89a" + bytes(100), bytes(1000), jpeg[:200]):
        with pytest.raises(ValueError, match="not a readable JPEG"):
            decode_jpeg(data, 1280)
    random = np.random.default_rng(0)
    for _ in range(200):  # damaged: decoded to something or refused, never another exception
        damaged = np.frombuffer(jpeg, np.uint8).copy()
        damaged[random.integers(2, len(damaged), 5)] = random.integers(0, 256, 5)
        try:
            assert max(decode_jpeg(damaged.tobytes(), 1280).shape) <= 1280
        except ValueError:
            pass


def test_download_is_the_inverse_of_upload():
    tensor = upload([COLOUR, COLOUR[::-1]], (48, 64), torch.device("cpu"))
    assert tensor.shape == (2, 3, 48, 64) and tensor.aminmax().min >= -1 and tensor.aminmax().max <= 1
    for image, expected in zip(download(tensor, [(48, 64)] * 2), (COLOUR, COLOUR[::-1]), strict=True):
        np.testing.assert_array_equal(image, expected)


def test_jpeg_can_be_used_without_importing_torch():
    """The page and the command line start quickly and report a wrong argument at once."""
    code = "import sys; import live2diff.streaming.images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("read", [check_frame_jpeg, decode_frame])
def test_a_camera_frame_is_checked_once(monkeypatch, read):
    small, opened, read_header = encode_jpeg(COLOUR, 90), [], Image.open
    monkeypatch.setattr(Image, "open", lambda *a, **o: opened.append(1) or read_header(*a, **o))
    read(small)
    assert len(opened) == 1
    with pytest.raises(ValueError, match=f"has {LARGEST_FRAME + 1} bytes, the limit is"):
        read(small + bytes(LARGEST_FRAME + 1 - len(small)))
    with pytest.raises(ValueError, match=f"the limit is {LONGEST_SIDE} pixels"):
        read(encode_jpeg(np.zeros((1, LONGEST_SIDE + 1, 3), np.uint8), 90))
