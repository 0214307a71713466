"""VP9 between the Live tab in a real browser and the server."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from helpers.browser import READ_NUMBER, Identity, needs_browser, opened, pixels, with_numbered_camera
from helpers.live_tab import reach, run, stop, unequal_pairs
from helpers.network import Network
from helpers.page import served_page
from helpers.video_frames import goes_on, is_key, note_traffic
from helpers.waiting import wait_for
from playwright.sync_api import Browser, expect

from live2diff.serving.engine import Engine
from live2diff.ui.live_protocol import EARLIER
from live2diff.ui.theme import STATIC
from live2diff.ui.video_codec import CameraDecoder, VideoError, is_vp9

pytestmark = needs_browser
SLOW, FAST = -1e9, 1e9  # transfer time of JPEGs from which on VP9 is used: always, never
PATIENT = 60_000  # milliseconds that a frame may take to be encoded: the machine may be busy


def script(slow: float, worker: str = "", encoding: int = PATIENT) -> str:
    """Return what sets the worker's options and runs `worker` in it before its own script."""
    return f"""{READ_NUMBER}
    window.Worker = class extends Worker {{
      constructor(...rest) {{
        super(...rest);
        this.postMessage({{ options: {{ slow: {slow}, encoding: {encoding}, pause: 20 }} }});
      }}
    }};
    window.Blob = class extends Blob {{
      constructor(parts, options) {{
        super(options?.type === "text/javascript" ? [{worker!r}, ...parts] : parts, options);
      }}
    }};"""


@pytest.fixture(scope="module")
def browser(playwright, tmp_path_factory) -> Iterator[Browser]:
    with with_numbered_camera(playwright, tmp_path_factory.mktemp("camera"), 60) as browser:
        yield browser


@pytest.fixture(scope="module")
def server() -> Iterator[SimpleNamespace]:
    engine = Engine(Identity(), capacity=1)
    with served_page(engine) as demo:
        yield SimpleNamespace(engine=engine, demo=demo, address=demo.local_url)


@pytest.fixture
def traffic(server, monkeypatch) -> Iterator[SimpleNamespace]:
    yield note_traffic(monkeypatch)
    wait_for(lambda: server.engine.stats()["streams"] == 0)


def test_vp9_carries_the_same_frames_in_order_in_fewer_bytes(browser, server, traffic):
    with opened(browser, server.address, script(SLOW)) as page:
        run(page)
        wait_for(lambda: goes_on(traffic, 10))
        assert not unequal_pairs(page)
        both = pixels(page, "#live canvas", 64, 24)
        assert abs(both[8:, :32] - both[8:, 32:]).mean() < 5, "the same colours"
        page.locator("#live .more").evaluate("more => { more.open = true; }")
        expect(page.locator("#live .meter")).to_contain_text("VP9 at")
        stop(page)
    frames = [frame.data for frame in traffic.frames]
    numbers = [frame.number for frame in traffic.frames]
    assert numbers == list(range(1, len(numbers) + 1))
    jpegs = [len(data) for data in frames if not is_vp9(data)]
    assert not is_vp9(frames[0])
    for sent in (frames, traffic.results):
        video = [data for data in sent if is_vp9(data)]
        assert is_key(video[0])
        assert sum(map(len, video)) / len(video) < sum(jpegs) / len(jpegs) / 2


@pytest.mark.parametrize(
    ("slow", "worker"),
    [(FAST, ""), (SLOW, "delete self.VideoEncoder;"), (SLOW, "delete self.VideoDecoder;")],
    ids=["fast network", "no encoder", "no decoder"],
)
def test_jpegs_where_they_are_quick_or_the_browser_has_no_other(browser, server, traffic, slow, worker):
    with opened(browser, server.address, script(slow, worker)) as page:
        run(page)
        count = len(traffic.frames)
        wait_for(lambda: len(traffic.frames) > count + 40)  # more than two seconds
        assert goes_on(traffic, video=False)
        assert not any(map(is_vp9, traffic.results))
        stop(page)


BAD_CHUNK = """self.VideoDecoder = class extends VideoDecoder {
  decode(chunk) {
    self.decoded = (self.decoded ?? 0) + 1;
    const data = new Uint8Array(200).fill(0x82);
    super.decode(self.decoded === 4 ? new EncodedVideoChunk({ type: "key", timestamp: 1, data }) : chunk);
  }
};"""
BAD_ENCODER = """self.VideoEncoder = class extends VideoEncoder {
  encode(...rest) {
    self.encoded = (self.encoded ?? 0) + 1;
    if (self.encoded === 4) throw new DOMException("no");
    super.encode(...rest);
  }
};"""


SLOW_ENCODER = """self.VideoEncoder = class extends VideoEncoder {
  encode(...rest) {
    self.encoded = (self.encoded ?? 0) + 1;
    if (self.encoded < 4) super.encode(...rest);
  }
};"""


@pytest.mark.parametrize(
    ("worker", "encoding"),
    [(BAD_CHUNK, PATIENT), (BAD_ENCODER, PATIENT), (SLOW_ENCODER, 500)],
    ids=["decoder", "encoder", "too slow"],
)
def test_after_an_error_in_the_browser_jpegs_have_to_do(browser, server, traffic, worker, encoding):
    with opened(browser, server.address, script(SLOW, worker, encoding)) as page:
        run(page)
        wait_for(lambda: any(is_vp9(frame.data) for frame in traffic.frames))
        wait_for(lambda: goes_on(traffic, video=False))
        count = len(traffic.results)
        wait_for(lambda: len(traffic.results) > count + 20 and goes_on(traffic, video=False))
        expect(page.locator("#live .message")).to_be_hidden()
        assert page.locator("#live .stage").get_attribute("data-state") == "running"
        stop(page)


def test_after_an_error_at_the_server_jpegs_have_to_do(browser, server, traffic, monkeypatch):
    decode, calls = CameraDecoder.decode, []

    def failing(decoder: CameraDecoder, chunks: list[bytes]) -> object:
        calls.append(len(chunks))
        if len(calls) == 4:
            raise VideoError("no")
        return decode(decoder, chunks)

    monkeypatch.setattr(CameraDecoder, "decode", failing)
    with opened(browser, server.address, script(SLOW)) as page:
        run(page)
        wait_for(lambda: len(calls) == 4 and goes_on(traffic, video=False))
        count = len(traffic.results)
        wait_for(lambda: len(traffic.results) > count + 20)
        assert len(calls) == 4 and goes_on(traffic, video=False)
        stop(page)


def test_after_a_cut_the_last_frames_go_first_as_jpegs_and_then_vp9_again(browser, server, traffic):
    network = Network(server.demo.server_port)
    with opened(browser, f"http://127.0.0.1:{network.port}/", script(SLOW)) as page:
        run(page)
        wait_for(lambda: goes_on(traffic, 10))
        network.cut()
        reach(page, "cut")
        wait_for(lambda: server.engine.stats()["streams"] == 0)
        before = len(traffic.frames)
        network.mend()
        reach(page, "running")
        wait_for(lambda: len(traffic.frames) > before + 10 and goes_on(traffic))
        again = traffic.frames[before:]
        assert [frame.number == EARLIER for frame in again] == [True] * 8 + [False] * (len(again) - 8)
        assert not any(is_vp9(frame.data) for frame in again[:9])
        stop(page)
    network.close()


RATE = """([batches, rate]) => {
  const [sent, options, flowing] = [[], { slow: 15 }, true];
  const now = () => 0, send = (message) => sent.push(message.rate), onDecoded = () => {};
  %s
  video = { wanted: rate, rate };
  for (const batch of batches) {
    lateness = batch;
    adaptCodec(20);
  }
  return [Math.round(video.wanted), sent];
}"""


@pytest.mark.parametrize(
    ("batches", "rate", "wanted", "sent"),
    [
        ([[50, 60, 2]], 1_000_000, 750_000, [750_000]),
        ([[5, 2, 90]], 1_000_000, 1_150_000, []),
        ([[5], [5]], 1_000_000, 1_322_500, [1_322_500]),
        ([[20, 5, 25], []], 1_000_000, 1_000_000, []),
        ([[500]] * 50, 1_000_000, 200_000, None),
        ([[0]] * 50, 1_000_000, 4_000_000, None),
    ],
    ids=["late", "on time", "on time again", "neither", "least", "most"],
)
def test_the_rate_follows_the_network(browser, batches, rate, wanted, sent):
    page = browser.new_page()
    found, messages = page.evaluate(RATE % (STATIC / "codec.js").read_text(), [batches, rate])
    page.close()
    assert found == wanted and (sent is None or messages == sent)


TRIAL = """([shown, jpegDelay]) => {
  const [sent, options, flowing] = [[], { slow: 15 }, true];
  const now = () => 0, send = (message) => sent.push(message.codec), onDecoded = () => {};
  %s
  video = { wanted: 1e6, rate: 1e6, jpegDelay };
  for (const batch of shown) {
    lateness = [20];
    delays = batch;
    adaptCodec(20);
  }
  return sent;
}"""


@pytest.mark.parametrize(
    ("shown", "sent"),
    [
        ([[110] * 19], []),
        ([[90] * 9 + [110] * 11], ["jpeg"]),
        ([[90] * 11 + [110] * 9], []),
        ([[90] * 20, [500] * 20], []),
    ],
    ids=["too few", "later", "no later", "passed"],
)
def test_vp9_stays_where_frames_are_shown_no_later_than_as_jpegs(browser, shown, sent):
    page = browser.new_page()
    found = page.evaluate(TRIAL % (STATIC / "codec.js").read_text(), [shown, 100])
    page.close()
    assert found == sent
