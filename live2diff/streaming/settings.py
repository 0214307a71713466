"""The settings of a stream, all the way from a message of the page to `Stream`."""

from collections.abc import Callable
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from ..config import MAX_DENOISING_STEPS
from .scene_change import SCENE_CUT

LONGEST_PROMPT = 4000  # characters; the tokenizer keeps 77 tokens in any case
LONGEST_MESSAGE_PROMPT = 2000  # characters of a style or prompt in a message of the page
TEXT_FIELDS = ("style", "prompt", "mix_style", "mix_prompt")
LIVE_FIELDS = (*TEXT_FIELDS, "mix", "steps", "strength", "lora_scale")  # what `Stream.update` can change
MESSAGE_FIELDS = (*LIVE_FIELDS, "seed")
BLEND_FRAMES = 8  # over which a new prompt replaces the old one
LONGEST_BLEND = 600

Integer = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True)]
Blend = Annotated[Integer, Field(ge=0, le=LONGEST_BLEND)]
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {  # the check of a value, and what it must be
    "seed": (lambda n: -(2**63) <= n < 2**63, "fit into 64 bits"),
    "steps": (lambda n: 1 <= n <= MAX_DENOISING_STEPS, "be 1, 2, 3 or 4"),
    "strength": (lambda x: 0 < x <= 1, "be above 0 and at most 1"),
    "mix": (lambda x: 0 <= x <= 1, "be from 0 to 1"),
    "lora_scale": (lambda x: 0 <= x <= 2, "be from 0 to 2"),
    "depth_every": (lambda n: n >= 1, "be a whole number of at least 1"),
    "scene_cut": (lambda x: 0 < x < 1, "be between 0 and 1, or None for never"),
    "similar_frame_skip": (lambda x: 0 < x < 1, "be between 0 and 1, or None for never"),
}


class StreamSettings(BaseModel):
    """Immutable, validated settings of one stream.

    The pipeline, which knows the model, checks whether a style exists and a size fits.

    Attributes:
        style: a name in the pipeline's `styles`, "" for the prompt alone, None for the default style.
        prompt: the viewer's words, at most 4000 characters.
        mix_prompt, mix_style: a second prompt, and the style of its template (not its weights), None for that
            of `style`.
        mix: 0 to 1, the share of the second prompt; the embeddings are interpolated.
        seed: 64 bits; the same seed and frames give the same output.
        steps: 1 to 4 denoising steps; None for the style's or the model's default.
        strength: above 0 (little change) to 1; None for the style's or the model's default.
        t_index_list: the denoising steps as increasing indices; overrides `steps` and `strength`.
        size: working size, n for about n x n pixels in the frames' aspect ratio, or (height, width).
        lora_scale: 0 to 2, multiplies the weights of the style's LoRAs.
        depth_every: estimate depth for every n-th frame; the others reuse the last estimate.
        scene_cut: image difference, 0 to 1, at which the stream warms up again; None for never.
        similar_frame_skip: cosine similarity with the last frame used, 0 to 1, from which frames may be
            skipped and the last output is returned again; None for never. 0.98 is usual.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    style: str | None = None
    prompt: str = ""
    mix_style: str | None = None
    mix_prompt: str = ""
    mix: Number = 0.0
    seed: Integer = 0
    steps: Integer | None = None
    strength: Number | None = None
    t_index_list: tuple[Integer, ...] | None = None
    size: Integer | tuple[Integer, Integer] | None = None
    lora_scale: Number = 1.0
    depth_every: Integer = 1
    scene_cut: Number | None = SCENE_CUT
    similar_frame_skip: Number | None = None

    def __init__(self, **values: Any) -> None:
        """Validate the values.

        Raises:
            ValueError: a value is bad; the message names the first one and what is possible.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ValueError(describe(error)) from None

    @field_validator("prompt", "mix_prompt")
    @classmethod
    def check_prompt(cls, prompt: str) -> str:
        """Check the length of a prompt."""
        if len(prompt) > LONGEST_PROMPT:
            raise ValueError(f"The prompt has {len(prompt)} characters; at most {LONGEST_PROMPT} fit.")
        return prompt

    @field_validator(*RANGES)
    @classmethod
    def check_limits(cls, value: float | None, info: ValidationInfo) -> float | None:
        """Check a number against its limits."""
        fits, requirement = RANGES[str(info.field_name)]
        if value is not None and not fits(value):
            raise ValueError(f"{info.field_name} is {value!r}; it must {requirement}.")
        return value

    @classmethod
    def from_message(cls, message: object) -> Self:
        """Read and check untrusted settings from a browser; unknown fields are ignored.

        Raises:
            ValueError: it is not an object, style or prompt are missing or over 2000 characters, or a value
                is bad.
        """
        if not isinstance(message, dict):
            raise ValueError("The settings are not an object.")
        values = {name: message[name] for name in MESSAGE_FIELDS if name in message}
        for name in ("style", "prompt", *(values.keys() & {"mix_style", "mix_prompt"})):
            text = values.get(name)
            if name == "mix_style" and text is None:
                continue
            if not isinstance(text, str) or len(text) > LONGEST_MESSAGE_PROMPT:
                raise ValueError(
                    f"Styles and prompts are texts of at most {LONGEST_MESSAGE_PROMPT} characters."
                )
            # JSON can hold unpaired surrogates, which no tokenizer accepts.
            values[name] = text.encode("utf-8", "replace").decode()
        return cls(**values)

    @property
    def prompts(self) -> list[tuple[str | None, str]]:
        """The styles and prompts in use: one, or two if they are mixed."""
        second = self.style if self.mix_style is None else self.mix_style, self.mix_prompt
        return [(self.style, self.prompt), *([second] if self.mix else [])]

    def updated(self, **changes: Any) -> Self:
        """Return a validated copy with some settings changed."""
        return type(self)(**{**self.model_dump(), **changes})

    def updated_live(self, other: Self) -> Self:
        """Return a copy with the settings of `other` that were set and that a running stream can change."""
        return self.updated(**other.model_dump(include=other.model_fields_set & set(LIVE_FIELDS)))

    def check_update(self, other: Self) -> None:
        """Check that a running stream with these settings can change to others.

        Raises:
            ValueError: a setting differs that needs a new stream.
        """
        for name in type(self).model_fields.keys() - set(LIVE_FIELDS):
            now, asked = getattr(self, name), getattr(other, name)
            if now != asked:
                raise ValueError(f"{name} is {now!r} while the stream runs; open a new one for {asked!r}.")


def describe(error: ValidationError) -> str:
    """Describe the first error in one sentence."""
    first = error.errors()[0]
    own_message = first.get("ctx", {}).get("error")  # raised by a validator above
    if own_message is not None:
        return str(own_message)
    name = str(first["loc"][0]) if first["loc"] else "settings"
    if first["type"] == "extra_forbidden":
        return f"There is no setting {name!r}."
    return f"{name} is {first['input']!r}: {first['msg']}."
