"""Presets: how each style is put into words for the model, and which weights it brings with it."""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from .config import MAX_DENOISING_STEPS


@dataclass(frozen=True)
class Style:
    """A preset. Those with a `base` or with `loras` are for models of Stable Diffusion 1.5's shape; the
    others are words alone, and any model can try them.

    Attributes:
        title: what people read.
        template: the prompt, with `{}` where the viewer's own words go.
        trigger_words: words that a checkpoint or LoRA was trained to answer to; they begin the prompt.
        clip_skip: how many of the text encoder's last layers are left out, as diffusers counts it.
        base: the weights it is drawn with: the name of a Hub repository in diffusers' layout, a folder in
            that layout, or a single `.safetensors` or `.ckpt` file in the original layout; None for the
            model's own.
        loras: files and their weights.
        t_index_list: denoising steps, as increasing indices into 50 LCM steps; None for the model's own.
        steps, strength: used in place of `t_index_list`, as `Live2DiffPipeline.stream` takes them.
        thumbnail: a picture file to choose it by; None for the one that comes with the project, if any.
    """

    title: str
    template: str = "{}"
    trigger_words: str = ""
    clip_skip: int = 1
    base: str | None = None
    loras: tuple[tuple[str, float], ...] = ()
    t_index_list: tuple[int, ...] | None = None
    steps: int | None = None
    strength: float | None = None
    thumbnail: str | None = None

    @property
    def files(self) -> list[str]:
        """The weights that it brings, by the names it gives them."""
        return [*([self.base] if self.base else []), *(name for name, _ in self.loras)]

    @property
    def has_weights(self) -> bool:
        """Whether the model's own weights are not enough for it."""
        return bool(self.files)

    def prompt(self, words: str) -> str:
        """The whole prompt; without the viewer's words, that of the style alone."""
        whole = self.template.replace("{}", words.strip())
        return ", ".join(part for part in (self.trigger_words, whole.strip(" ,")) if part)


THUMBNAILS = Path(__file__).parent / "ui" / "static" / "styles"  # NAME.jpg; made by examples/render.py
SAMPLES = THUMBNAILS / "large"  # half a picture as it was, half of it in the style; as well
QUALITY = "masterpiece, best quality"

STYLES: dict[str, Style] = {
    # Words alone: what the nano model was trained on.
    "pencil": Style("Pencil", "a pencil drawing, {}"),
    "ink": Style("Ink wash", "an ink wash painting, {}"),
    "watercolour": Style("Watercolour", "a watercolour painting, {}"),
    "oil": Style("Oil paint", "an oil painting, {}"),
    "comic": Style("Comic", "a comic book picture, {}"),
    "neon": Style("Neon", "glowing neon lights, {}"),
    "pixel": Style("Pixel art", "pixel art, {}"),
    "woodcut": Style("Woodcut", "a woodcut print, {}"),
    "blueprint": Style("Blueprint", "a white on blue blueprint, {}"),
    # Weights that the Hub gives without a token.
    "dreamshaper": Style("DreamShaper", QUALITY + ", {}", base="Lykon/dreamshaper-8", clip_skip=2),
    "modern-disney": Style(
        "Modern Disney", trigger_words="modern disney style", base="nitrosocke/mo-di-diffusion"
    ),
    "ghibli": Style("Ghibli", trigger_words="ghibli style", base="nitrosocke/Ghibli-Diffusion"),
    "arcane": Style("Arcane", trigger_words="arcane style", base="nitrosocke/Arcane-Diffusion"),
    "woolitize": Style("Woollen", trigger_words="woolitize", base="plasmo/woolitize"),
    "van-gogh": Style("Van Gogh", trigger_words="lvngvncnt", base="dallinmackay/Van-Gogh-diffusion"),
    # The published ones, for those who have the files (their site wants a token).
    "disneyPixar": Style(
        "Disney Pixar",
        QUALITY + ", intricate, print, pattern, {}",
        clip_skip=2,
        base="disneyPixarCartoon_v10.safetensors",
        t_index_list=(30, 36, 42),
    ),
    "felted": Style(
        "Felted",
        QUALITY + ", felted, {}",
        clip_skip=2,
        base="revAnimated_v2RebirthVAE.safetensors",
        loras=(("kFeltedReV.safetensors", 1.0),),
        t_index_list=(25, 34, 43),
    ),
    "moxin": Style(
        "Moxin ink",
        "negative space, chinese ink painting, {}",
        trigger_words="shukezouma, shuimobysim",
        clip_skip=2,
        base="3Guofeng3_v34.safetensors",
        loras=(("MoXinV1.safetensors", 0.7),),
        t_index_list=(30, 36, 42),
    ),
    "origami": Style(
        "Origami",
        QUALITY + ", a origami paper of {}",
        clip_skip=2,
        base="helloartdoor_V122p.safetensors",
        loras=(("ral-origami-sd15.safetensors", 1.0),),
        t_index_list=(30, 36, 42),
    ),
    "pixart": Style(
        "PixArt",
        QUALITY + ", {}",
        clip_skip=2,
        base="aziibpixelmix_v10.safetensors",
        # The published setting is 4 LCM steps at strength 0.6: timesteps 499 and 259.
        t_index_list=(25, 37),
    ),
    "toonyou": Style(
        "ToonYou",
        QUALITY + ", intricate, print, pattern, {}",
        clip_skip=2,
        base="toonyou_beta6.safetensors",
        t_index_list=(25, 31, 37, 43),
    ),
}


def thumbnail_of(name: str, style: Style) -> Path | None:
    """The picture to choose a style by, if there is one."""
    path = Path(style.thumbnail) if style.thumbnail else THUMBNAILS / f"{name}.jpg"
    return path.resolve() if path.is_file() else None


def find_style(name: str | None, styles: dict[str, Style] = STYLES) -> Style:
    """The preset of that name among `styles`; for None or an empty name, the viewer's words as they are.

    Raises:
        ValueError: there is none of that name; the message lists those there are.
    """
    if not name:
        return Style("None")
    if name not in styles:
        raise ValueError(f"There is no style {name[:40]!r}. Choose one of: {', '.join(styles)}.")
    return styles[name]


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def is_number(value: Any, lowest: float, highest: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and lowest <= value <= highest


def is_count(value: Any, lowest: int, highest: int) -> bool:
    return isinstance(value, int) and is_number(value, lowest, highest)


def is_lora(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and is_text(value[0]) and is_number(value[1], -10, 10)


def is_index_list(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 1 <= len(value) <= MAX_DENOISING_STEPS
        and all(is_count(index, 0, 49) for index in value)
        and sorted(set(value)) == value
    )


# For each entry of a styles file: what it has to be, in code and in words.
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "title": (is_text, "a text that people read"),
    "template": (
        lambda value: is_text(value) and value.count("{}") == 1,
        "a text with {} in it once, where the viewer's words go",
    ),
    "trigger_words": (is_text, "a text"),
    "clip_skip": (lambda value: is_count(value, 0, 11), "a whole number from 0 to 11"),
    "base": (is_text, "a Hub name like 'owner/name', a folder or a file"),
    "loras": (
        lambda value: isinstance(value, list) and all(map(is_lora, value)),
        'a list like [["file.safetensors", 0.8]], with weights from -10 to 10',
    ),
    "t_index_list": (is_index_list, "1 to 4 increasing whole numbers from 0 to 49"),
    "steps": (lambda value: is_count(value, 1, MAX_DENOISING_STEPS), "1, 2, 3 or 4"),
    "strength": (
        lambda value: is_number(value, 0, 1) and value > 0,
        "a number above 0 and at most 1",
    ),
    "thumbnail": (is_text, "a picture file"),
}
assert set(RULES) == {field.name for field in fields(Style)}


def read_styles(file: str | Path) -> dict[str, Style]:
    """The presets in a JSON file, `{"name": {"title": …, "base": …}}` with the entries of `Style`.

    Files that it names are looked for beside it first.

    Raises:
        ValueError: it is not such a file; the message has a line for each mistake.
        OSError: it cannot be read.
    """
    file = Path(file)
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not a JSON file: {error}") from None
    if not isinstance(described, dict):
        raise ValueError(f'{file} must hold {{"name": {{"title": …}}}}, one entry for each style.')
    mistakes = [line for name, entries in described.items() for line in mistakes_of(name, entries)]
    if mistakes:
        raise ValueError("\n".join([f"{file} cannot be used:", *mistakes]))
    return {name: beside(file.parent, style_of(entries)) for name, entries in described.items()}


def mistakes_of(name: str, entries: Any) -> list[str]:
    """What is wrong with one style of a styles file, a line each."""
    if not isinstance(entries, dict):
        return [f"style {name!r} must be an object with a title."]
    lines = [] if name.strip() else ["a style needs a name."]
    if "title" not in entries:
        lines.append(f"style {name!r} has no title.")
    for key, value in entries.items():
        if key not in RULES:
            lines.append(f"style {name!r} has {key!r}; known are {', '.join(RULES)}.")
        elif not RULES[key][0](value):
            lines.append(f"style {name!r}: {key} is {json.dumps(value)[:60]}; it must be {RULES[key][1]}.")
    if "t_index_list" in entries and ("steps" in entries or "strength" in entries):
        lines.append(f"style {name!r} has a t_index_list, and steps or strength as well: choose one way.")
    return lines


def style_of(entries: dict[str, Any]) -> Style:
    """The preset of checked entries; lists become tuples."""
    given = dict(entries)
    if "loras" in given:
        given["loras"] = tuple((lora, float(weight)) for lora, weight in given["loras"])
    if "t_index_list" in given:
        given["t_index_list"] = tuple(given["t_index_list"])
    return Style(**given)


def beside(folder: Path, style: Style) -> Style:
    """The style with the files that lie in `folder` named in full."""

    def full(name: str | None) -> str | None:
        return str(folder / name) if name and (folder / name).exists() else name

    loras = tuple((full(lora), weight) for lora, weight in style.loras)
    return replace(style, base=full(style.base), loras=loras, thumbnail=full(style.thumbnail))
