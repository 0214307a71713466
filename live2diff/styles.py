"""Style presets: a prompt template, and for some styles weights of their own."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator
from pydantic.dataclasses import dataclass

from .config import MAX_DENOISING_STEPS

Text = Annotated[str, Field(pattern=r"\S")]
Scale = Annotated[float, Field(strict=True, ge=-10, le=10, allow_inf_nan=False)]
Index = Annotated[int, Field(strict=True, ge=0, le=49)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Style:
    """A preset, with the fields of a style file.

    A style with a `base` or `loras` needs a model of Stable Diffusion 1.5's architecture; the others only
    change the prompt and work with any model.

    Attributes:
        template: the prompt, with `{}` where the viewer's words go.
        trigger_words: words that a checkpoint or LoRA was trained on; they begin the prompt.
        clip_skip: how many of the text encoder's last layers are left out, as diffusers counts it.
        base: the base weights: a Hub repository or folder in diffusers' layout, or a single `.safetensors`
            or `.ckpt` file in the original layout; None for the model's own.
        t_index_list: denoising steps, as increasing indices into 50 LCM steps; None for the model's own.
        steps, strength: used in place of `t_index_list`, as in `StreamSettings`.
        thumbnail: an image file; None for the one shipped with the project, if any.
    """

    title: Text = Field(description="a text that people read")
    template: str = Field(default="{}", description="a text with {} in it once, where the viewer's words go")
    trigger_words: str = Field(default="", description="a text")
    clip_skip: int = Field(default=1, strict=True, ge=0, le=11, description="a whole number from 0 to 11")
    base: Text | None = Field(default=None, description="a Hub name like 'owner/name', a folder or a file")
    loras: tuple[tuple[Text, Scale], ...] = Field(
        default=(), description='a list like [["file.safetensors", 0.8]], with scales from -10 to 10'
    )
    t_index_list: Annotated[tuple[Index, ...], Field(min_length=1, max_length=MAX_DENOISING_STEPS)] | None = (
        Field(default=None, description="1 to 4 increasing whole numbers from 0 to 49")
    )
    steps: int | None = Field(
        default=None, strict=True, ge=1, le=MAX_DENOISING_STEPS, description="1, 2, 3 or 4"
    )
    strength: float | None = Field(
        default=None, strict=True, gt=0, le=1, description="a number above 0 and at most 1"
    )
    thumbnail: Text | None = Field(default=None, description="an image file")

    @field_validator("template", "t_index_list")
    @classmethod
    def check_field(cls, value: Any) -> Any:
        """Check that a template has exactly one `{}`, and that indices increase."""
        if isinstance(value, str) and value.count("{}") != 1:
            raise ValueError("a template needs {} once")
        if isinstance(value, tuple) and list(value) != sorted(set(value)):
            raise ValueError("indices must increase")
        return value

    @property
    def files(self) -> list[str]:
        """Names of the weights that the style needs."""
        return [*([self.base] if self.base else []), *(name for name, _ in self.loras)]

    @property
    def has_weights(self) -> bool:
        """Whether the style needs other weights than the model's own."""
        return bool(self.files)

    def prompt(self, words: str) -> str:
        """Return the template filled with the viewer's words, trigger words first."""
        words = words.strip().strip(" ,")
        whole = self.template.replace("{}", words)
        if not words:
            whole = whole.strip(" ,")
        return ", ".join(part for part in (self.trigger_words, whole) if part)


THUMBNAILS = Path(__file__).parent / "ui" / "static" / "styles"  # NAME.jpg; made by examples/render.py
SAMPLES = THUMBNAILS / "large"  # likewise; one half of each image is the original, the other is styled


def thumbnail_of(name: str, style: Style) -> Path | None:
    """Return the path of a style's thumbnail, or None if there is none."""
    path = Path(style.thumbnail) if style.thumbnail else THUMBNAILS / f"{name}.jpg"
    return path.resolve() if path.is_file() else None


def read_styles(file: str | Path) -> dict[str, Style]:
    """Read presets from a JSON file, `{"name": {"title": …, "base": …}}`, with the fields of `Style`.

    Files that a style names are looked for in the folder of `file` first.

    Raises:
        ValueError: the file is invalid; the message has a line for each mistake.
        OSError: it cannot be read.
    """
    file = Path(file)
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not a JSON file: {error}") from None
    if not isinstance(entries, dict):
        raise ValueError(f'{file} must hold {{"name": {{"title": …}}}}, one entry for each style.')
    mistakes = [
        f"style {name!r} has a t_index_list, and steps or strength as well: choose one way."
        for name, entry in entries.items()
        if isinstance(entry, dict) and "t_index_list" in entry and entry.keys() & {"steps", "strength"}
    ]
    styles = {}
    try:
        styles = TypeAdapter(dict[Text, Style]).validate_python(entries)
    except ValidationError as error:
        mistakes += dict.fromkeys(describe_mistake(entries, *found["loc"][:2]) for found in error.errors())
    if mistakes:
        raise ValueError("\n".join([f"{file} cannot be used:", *mistakes]))
    return {name: resolve_files(style, file.parent) for name, style in styles.items()}


def describe_mistake(entries: dict[Any, Any], name: int | str, field: int | str | None = None) -> str:
    """Describe in one line what is wrong with a field of the style `name`, and what is allowed."""
    known = TypeAdapter(Style).json_schema()["properties"]
    if field == "[key]":
        return "a style needs a name."
    if field is None:
        return f"style {name!r} must be an object with a title."
    if field not in known:
        return f"style {name!r} has an unknown field {field!r}; known are {', '.join(known)}."
    if field not in entries[name]:
        return f"style {name!r} has no {field}; it must be {known[field]['description']}."
    value = json.dumps(entries[name][field])[:60]
    return f"style {name!r}: {field} is {value}; it must be {known[field]['description']}."


def resolve_files(style: Style, folder: Path) -> Style:
    """Return the style with full paths for those of its files that are in `folder`."""

    def full(name: str | None) -> str | None:
        return str(folder / name) if name and (folder / name).exists() else name

    loras = tuple((full(lora), scale) for lora, scale in style.loras)
    return replace(style, base=full(style.base), loras=loras, thumbnail=full(style.thumbnail))


# In this order: prompts that the nano model was trained on; weights that the Hub serves without a token; the
# published styles, whose files are downloaded by hand, as their site needs a token. `tests/test_styles.py`
# compares the latter with the published ones. The steps of pixart are published as 4 at strength 0.6.
STYLES: dict[str, Style] = read_styles(Path(__file__).with_name("styles.json"))


def find_style(name: str | None, styles: dict[str, Style] = STYLES) -> Style:
    """Return the preset `name` of `styles`; for None or "", one that leaves the prompt unchanged.

    Raises:
        ValueError: there is no such preset; the message lists them all.
    """
    if not name:
        return Style("None")
    if name not in styles:
        raise ValueError(f"There is no style {name[:40]!r}. Choose one of: {', '.join(styles)}.")
    return styles[name]
