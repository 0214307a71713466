"""VP9 frames: encoder and decoder alone."""

import itertools
import random
import weakref

import cv2
import numpy as np
import pytest
from helpers.browser import numbered
from helpers.paths import EXAMPLES
from helpers.video_frames import SIZE, encoded, is_key, read_number

from live2diff.streaming.images import JPEG_QUALITY, LARGEST_FRAME, decode_jpeg, encode_jpeg, resize
from live2diff.ui.video_codec import MOST_WAITING, CameraDecoder, ResultEncoder, VideoError, is_vp9
from live2diff.video.reader import read_frames


def decode(decoder: CameraDecoder, *chunks: bytes) -> np.ndarray:
    for chunk in chunks:
        decoder.put(chunk)
    return decoder.decode(decoder.take())


def psnr(image: np.ndarray, other: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.square(image.astype(float) - other).mean())


def blocks(seed: int) -> np.ndarray:
    """Return an image of random colours."""
    noise = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    return cv2.resize(noise, (320, 240), interpolation=cv2.INTER_CUBIC)


def test_frames_come_back_in_order_one_for_one():
    chunks, decoder = encoded(range(12)), CameraDecoder()
    assert all(is_vp9(chunk) for chunk in chunks)
    assert [is_key(chunk) for chunk in chunks] == [True] + [False] * 11
    for number, chunk in enumerate(chunks):
        image = decode(decoder, chunk)
        assert image.dtype == np.uint8 and read_number(image) == number
        assert np.abs(image.astype(int) - numbered(number, *SIZE)).mean() < 6


def test_frames_that_are_replaced_are_decoded_all_the_same():
    chunks, decoder = encoded(range(20)), CameraDecoder()
    assert read_number(decode(decoder, *chunks[:15])) == 14
    assert read_number(decode(decoder, *chunks[15:])) == 19


@pytest.mark.parametrize("size", [(320, 240), (321, 241), (2, 2), (33, 1)])
def test_any_size_keeps_its_colours(size):
    image = np.full((size[1], size[0], 3), [200, 60, 30], np.uint8)
    again = decode(CameraDecoder(), ResultEncoder(1_000_000).encode(image))
    assert again.shape == image.shape
    assert np.abs(again.astype(int) - image).mean() < 3
    white = np.full((240, 320, 3), 255, np.uint8)
    assert decode(CameraDecoder(), ResultEncoder(1_000_000).encode(white)).min() > 252


def test_pictures_are_as_good_as_jpegs_of_more_bytes():
    clip = read_frames(EXAMPLES / "results" / "traveller-comic.mp4")
    images = [resize(image, (288, 384)) for image, _ in itertools.islice(clip, 24)]
    ticks = itertools.count()
    encoder, decoder = ResultEncoder(4_000_000, clock=lambda: next(ticks) / 24), CameraDecoder()
    jpegs = [encode_jpeg(image, JPEG_QUALITY) for image in images]
    chunks = [encoder.encode(image) for image in images]
    video = [psnr(image, decode(decoder, chunk)) for image, chunk in zip(images, chunks, strict=True)]
    still = [psnr(image, decode_jpeg(jpeg, 1280)) for image, jpeg in zip(images, jpegs, strict=True)]
    assert 2 * sum(map(len, chunks)) < sum(map(len, jpegs))
    assert np.mean(video) > np.mean(still) - 2


def test_another_size_or_rate_begins_with_a_key_frame():
    encoder = ResultEncoder(1_000_000)
    assert is_key(encoder.encode(numbered(0, 320, 240)))
    encoder.rate = 1_200_000
    assert not is_key(encoder.encode(numbered(1, 320, 240)))
    assert is_key(encoder.encode(numbered(2, 240, 240)))
    encoder.rate = 500_000
    assert is_key(encoder.encode(numbered(3, 240, 240)))
    assert not is_key(encoder.encode(numbered(4, 240, 240)))


@pytest.mark.parametrize("rate", [600_000, 1_200_000])
@pytest.mark.parametrize("frames_a_second", [10, 25])
def test_the_rate_is_kept_on_the_clock_of_the_frames(rate, frames_a_second):
    ticks = itertools.count()
    encoder = ResultEncoder(rate, clock=lambda: next(ticks) / frames_a_second)
    chunks = [encoder.encode(blocks(number)) for number in range(60)]
    assert sum(map(len, chunks[20:])) / 40 * frames_a_second * 8 == pytest.approx(rate, rel=0.25)


@pytest.mark.parametrize(
    "chunk",
    [encoded(range(2))[1], encoded(range(1))[0][:100], b"\x82" + random.Random(0).randbytes(500), b"\x82"],
    ids=["no key frame", "cut off", "noise", "one byte"],
)
def test_damaged_frames_are_one_clear_error_and_nothing_in_the_log(chunk, capfd):
    with pytest.raises(VideoError, match="VP9"):
        decode(CameraDecoder(), chunk[:-1] + b"\0" if len(chunk) > 1 else chunk)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [(1400, 1300), (1400, 100)])
def test_a_frame_with_too_many_pixels_is_refused(size):
    (chunk,) = encoded(range(1), size=size)
    with pytest.raises(VideoError):
        decode(CameraDecoder(), chunk)


def test_a_size_that_grows_between_key_frames_is_refused():
    decoder = CameraDecoder()
    decode(decoder, *encoded(range(2)))
    with pytest.raises(VideoError):
        decode(decoder, *encoded(range(1), size=(1400, 1400)))


@pytest.mark.parametrize(
    "chunk", [b"\x82" * 40 + b"\xc1", b"\x82" * (LARGEST_FRAME + 1)], ids=["several", "large"]
)
def test_what_no_page_sends_is_a_value_error(chunk):
    with pytest.raises(ValueError, match="no single VP9 frame"):
        CameraDecoder().put(chunk)


def test_what_waits_is_bounded():
    (chunk,), decoder = encoded(range(1)), CameraDecoder()
    with pytest.raises(VideoError, match="wait"):
        for _ in range(MOST_WAITING + 1):
            decoder.put(chunk)
    assert len(decoder.take()) == MOST_WAITING + 1 and decoder.take() == []
    with pytest.raises(VideoError, match="wait"):
        for _ in range(4):
            decoder.put(b"\x82" * (LARGEST_FRAME // 3))


def test_an_image_that_cannot_be_encoded_is_a_video_error(monkeypatch):
    encoder = ResultEncoder(1_000_000)
    encoder.rate = -1
    with pytest.raises(VideoError):
        encoder.encode(numbered(0, 320, 240))


def test_nothing_holds_a_decoder():
    decoder = CameraDecoder()
    decode(decoder, *encoded(range(3)))
    held = weakref.ref(decoder)
    del decoder
    assert held() is None
