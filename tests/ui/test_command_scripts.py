"""The functions of the page's scripts without a page: links, cues and the meter, in a browser."""

import json

import pytest
from helpers.browser import chromium, needs_browser
from playwright.sync_api import Error, Page

from live2diff.streaming.cues import read_cues
from live2diff.ui.theme import STATIC

pytestmark = needs_browser
SCRIPTS = "\n".join((STATIC / name).read_text() for name in ("link.js", "cues.js", "meter.js"))
STYLES = ["pencil", "ink", "neon"]


@pytest.fixture(scope="module")
def blank(playwright):
    with chromium(playwright, None) as browser:
        yield browser.new_page()


def call(page: Page, name: str, *arguments: object) -> object:
    """Call a function of the scripts."""
    return page.evaluate(f"(rest) => {{ {SCRIPTS}\nreturn {name}(...rest); }}", list(arguments))


@pytest.mark.parametrize(
    ("given", "look", "problems"),
    [
        ({}, {}, []),
        ({"style": "ink", "seed": "7", "unknown": "x"}, {"style": "ink", "seed": 7}, []),
        ({"style": "cubist"}, {}, ["unknown style"]),
        ({"style": ["ink"]}, {}, ["unknown style"]),
        ({"mix_style": "__proto__", "mix": "0.5"}, {"mix": 0.5}, ["unknown style"]),
        ({"view": "inside out"}, {}, ["unknown view"]),
        ({"prompt": "x" * 100_000}, {"prompt": "x" * 500}, ["prompt cut, it is too long"]),
        ({"strength": "NaN"}, {}, ["strength is no number"]),
        ({"strength": "1e999"}, {"strength": 1}, ["strength set to 1"]),
        ({"strength": "-1"}, {"strength": 0.05}, ["strength set to 0.05"]),
        ({"steps": "2.7"}, {"steps": 2}, ["steps set to 2"]),
        ({"seed": "-5", "lora_scale": True}, {"seed": 0}, ["style weight is no number", "seed set to 0"]),
        ({"steps": "", "strength": None}, {}, []),
    ],
)
def test_of_a_look_what_can_be_used_is_used(blank, given, look, problems):
    assert call(blank, "checkLook", given, STYLES) == {"look": look, "problems": problems}


def test_a_look_in_an_address_is_read_as_it_was_written_without_what_is_usual(blank):
    look = {"style": "ink", "prompt": "a & b #1 ü", "mix": 0.25, "mix_style": "neon", "steps": 2, "seed": 9}
    usual = {"mix_prompt": "", "strength": None, "lora_scale": 1, "view": "result"}
    text = call(blank, "lookText", look | usual)
    assert "lora_scale" not in text and "view" not in text and "strength" not in text
    again = blank.evaluate("text => Object.fromEntries(new URLSearchParams(text))", text)
    assert call(blank, "checkLook", again, STYLES) == {"look": look, "problems": []}


@pytest.mark.parametrize(
    ("state", "rate", "camera", "work", "limit"),
    [
        ("running", 29.0, 30.0, 31.0, "camera"),
        ("running", 20.0, 30.0, 50.0, "model"),
        ("running", 20.0, 30.0, 12.0, "network"),
        ("waiting", 0.0, 30.0, 12.0, "line"),
        ("running", 0.0, 30.0, 12.0, ""),
    ],
)
def test_the_meter_names_what_limits_the_rate(blank, state, rate, camera, work, limit):
    measured = {"state": state, "rate": rate, "camera": camera, "work": work}
    assert call(blank, "limitOf", measured) == limit


def test_flicker_is_that_of_the_result_over_the_source_where_the_source_stands_still(blank):
    def pixels(*greys: int) -> list[int]:
        return [value for grey in greys for value in (grey, grey, grey, 255)] * 64

    before = {"source": pixels(100, 10), "result": pixels(50, 0)}
    after = {"source": pixels(102, 200), "result": pixels(56, 255)}  # the second moves
    sums = call(blank, "stillFlicker", before, after)
    assert sums == {"source": 2 * 64, "result": 6 * 64, "count": 64}
    assert call(blank, "flickerRatio", sums) == 3
    assert call(blank, "flickerRatio", sums | {"count": 63}) is None
    assert call(blank, "flickerRatio", {"source": 0, "result": 32, "count": 64}) == 2  # of 0.25, not of 0


PRESENT = {"style": "pencil", "prompt": "x", "mix_style": None, "mix_prompt": "", "mix": 0, "seed": 0}


def test_cues_of_a_file_keep_what_they_do_not_name(blank):
    sheet = {
        "start": {"style": "ink", "prompt": "a cat"},
        "cues": [
            {"frame": 3, "strength": 0.5},
            {"style": "neon", "strength": None, "blend": 0, "refill": True},
        ],
    }
    found = call(blank, "parseCues", json.dumps(sheet), STYLES, PRESENT)
    first, second = found["entries"]
    assert found["start"] == sheet["start"]
    assert (first["style"], first["prompt"], first["strength"], first["frame"], first["blend"]) == (
        "ink", "a cat", 0.5, 3, 8,
    )  # fmt: skip
    assert (second["style"], second["strength"], second["frame"], second["refill"]) == (
        "neon",
        None,
        None,
        True,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a JSON file"),
        ("null", "no cues in this file"),
        ('{"cues": 3}', "no cues in this file"),
        ('{"cues": [null]}', "Cue 1 is not an object"),
        ('{"cues": [{"frame": 1}, {"style": "cubist"}]}', "Cue 2: unknown style"),
        ('{"cues": [{"frame": -1}]}', "Cue 1: frame and blend are whole numbers"),
        ('{"cues": [{"blend": 1e9}]}', "Cue 1: frame and blend are whole numbers"),
        ('{"cues": [{"strength": 7}]}', "Cue 1: strength set to 1"),
        (json.dumps({"cues": [{}] * 201}), "more than 200 cues"),
    ],
)
def test_a_bad_file_of_cues_is_refused_with_the_place_of_the_mistake(blank, text, message):
    with pytest.raises(Error, match=message):
        call(blank, "parseCues", text, STYLES, PRESENT)


def test_the_command_line_reads_what_the_page_reads(blank, tmp_path):
    path = tmp_path / "cues.json"
    path.write_text(
        '{"start": {"style": "ink"}, "cues": [{"frame": 4, "mix": 0.5, "mix_style": "neon", "blend": 2}]}'
    )
    (cue,) = read_cues(path).cues
    (entry,) = call(blank, "parseCues", path.read_text(), STYLES, PRESENT)["entries"]
    assert (cue.frame, cue.blend, cue.refill) == (entry["frame"], entry["blend"], entry["refill"])
    assert cue.changes == {"mix": entry["mix"], "mix_style": entry["mix_style"]}
