"""Messages of the Live tab's socket, and what its page is made of."""

import json

import pytest
from PIL import Image

from live2diff.streaming.settings import StreamSettings
from live2diff.styles import Style
from live2diff.ui.live_protocol import LONGEST_TEXT, Restart, Start, Stop, Update, parse_message
from live2diff.ui.live_tab import page_script, style_entry

SETTINGS = {"style": "pencil", "prompt": "a ball", "seed": 3}


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
        (json.dumps({"start": {"style": ["pencil"], "prompt": ""}}), "Styles and prompts are texts"),
        (json.dumps({"update": SETTINGS | {"prompt": "x" * 2001}}), "at most 2000 characters"),
        (json.dumps({"start": SETTINGS | {"seed": 1.5}}), "seed is 1.5"),
        (json.dumps({"start": []}), "not an object"),
        ('"a text"', "message is unknown"),
        ('{"dance": true}', "message is unknown"),
        ("[1]", "message is unknown"),
        ("{", "not JSON"),
        ("[" * 15_000, "not JSON"),
        ("x" * (LONGEST_TEXT + 1), "20001 characters, the limit is 20000"),
    ],
    ids="setting missing styles prompt seed no-object text unknown list no-json deep long".split(),
)
def test_anything_else_is_rejected_with_a_reason(text, message):
    with pytest.raises(ValueError, match=message):
        parse_message(text)


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
