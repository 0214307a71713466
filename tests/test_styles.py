"""Presets equal the published ones; a style file is read, or refused with a line for each mistake."""

import json
import pickle
from dataclasses import replace

import pytest

from live2diff.styles import STYLES, Style, read_styles

# The published settings, word for word: base, LoRAs with scales, steps, and the prompt for "a cat".
# Brackets and the last comma are tokens to CLIP.
PUBLISHED = {
    "disneyPixar": (
        "disneyPixarCartoon_v10.safetensors",
        (),
        (30, 36, 42),
        "masterpiece, best quality, intricate, print, pattern, a cat",
    ),
    "felted": (
        "revAnimated_v2RebirthVAE.safetensors",
        (("kFeltedReV.safetensors", 1.0),),
        (25, 34, 43),
        "masterpiece, best quality, felted, a cat,",
    ),
    "moxin": (
        "3Guofeng3_v34.safetensors",
        (("MoXinV1.safetensors", 0.7),),
        (30, 36, 42),
        "shukezouma, negative space, shuimobysim, official art,extremely detailed CG,unity 8k wallpaper,"
        "chinese ink painting, a cat",
    ),
    "origami": (
        "helloartdoor_V122p.safetensors",
        (("ral-origami-sd15.safetensors", 1.0),),
        (30, 36, 42),
        "(masterpiece),best quality, a origami paper of a cat",
    ),
    "pixart": (
        "aziibpixelmix_v10.safetensors",
        (),
        (25, 37),  # published as 4 LCM steps at strength 0.6
        "(masterpiece), best quality, a cat",
    ),
    "toonyou": (
        "toonyou_beta6.safetensors",
        (),
        (25, 31, 37, 43),
        "masterpiece, best quality, intricate, print, pattern, a cat",
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_style_has_the_published_weights_steps_and_prompt(name):
    style = STYLES[name]
    assert (style.base, style.loras, style.t_index_list, style.prompt("a cat")) == PUBLISHED[name]


def test_a_prompt_without_words_ends_with_the_style():
    assert STYLES["felted"].prompt(" ") == "masterpiece, best quality, felted"
    assert STYLES["pencil"].prompt(" a dog, ") == "a pencil drawing, a dog"
    assert STYLES["ghibli"].prompt("") == "ghibli style"
    assert Style("None").prompt("as it is") == "as it is"


def test_a_style_is_a_value():
    style = Style("Mine", loras=(("a.safetensors", 1),), t_index_list=(10, 20))
    assert style == replace(style) == pickle.loads(pickle.dumps(style)) and hash(style) == hash(
        replace(style)
    )


def test_a_style_file_is_read_with_the_files_beside_it(tmp_path):
    (tmp_path / "ink.safetensors").touch()
    file = tmp_path / "mine.json"
    entry = {"title": "Mine", "base": "owner/name", "loras": [["ink.safetensors", 1], ["b.pt", 0.5]]}
    file.write_text(json.dumps({"mine": entry | {"steps": 2, "strength": 1}}))
    loras = ((str(tmp_path / "ink.safetensors"), 1.0), ("b.pt", 0.5))
    assert read_styles(file) == {"mine": Style("Mine", base="owner/name", loras=loras, steps=2, strength=1.0)}


def test_a_style_file_gets_a_line_for_every_mistake(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(
        json.dumps(
            {
                "good": {"title": "Good"},
                "a": {"title": "A", "template": "no place for words", "steps": 9},
                "b": {"base": 3, "lora": "x"},
                "c": {"title": "C", "t_index_list": [40, 30], "loras": [["x.safetensors", "much"]]},
            }
        )
    )
    with pytest.raises(ValueError) as caught:
        read_styles(file)
    lines = str(caught.value).splitlines()
    assert len(lines) == 8
    for words in ("'a': template", "'a': steps is 9", "'b' has no title", "'b': base is 3", "field 'lora'"):
        assert any(words in line for line in lines), words
    assert any("'c': loras" in line and "scales from -10 to 10" in line for line in lines)
    assert any("'c': t_index_list is [40, 30]; it must be 1 to 4 increasing" in line for line in lines)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not a JSON file"),
        ("[]", "must hold"),
        ('{"a": 3}', "'a' must be an object"),
        ('{" ": {"title": "A"}}', "needs a name"),
        ('{"a": {"title": "A", "t_index_list": [30], "steps": 2}}', "choose one way"),
        ('{"a": {"title": "A", "clip_skip": true}}', "clip_skip is true; it must be a whole number from 0"),
        ('{"a": {"title": "A", "clip_skip": 1.5}}', "clip_skip is 1.5"),
        ('{"a": {"title": "A", "strength": 0}}', "strength is 0; it must be a number above 0"),
        ('{"a": {"title": "A", "loras": [["x", NaN]]}}', "loras is"),
        ('{"a": {"title": "A", "loras": [["x"]]}}', "loras is"),
        ('{"a": {"title": "A", "t_index_list": []}}', "t_index_list is"),
        ('{"a": {"title": "A", "t_index_list": [1, 2, 3, 4, 5]}}', "t_index_list is"),
        ('{"a": {"title": "A", "t_index_list": [50]}}', "t_index_list is"),
        ('{"a": {"title": " "}}', "title is"),
        ('{"a": {"title": "A", "template": "{} and {}"}}', "template is"),
    ],
)
def test_a_wrong_entry_of_a_style_file_is_named(tmp_path, content, words):
    file = tmp_path / "mine.json"
    file.write_text(content)
    with pytest.raises(ValueError) as caught:
        read_styles(file)
    assert words in str(caught.value)
