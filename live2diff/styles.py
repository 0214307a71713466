"""Presets: how each style is put into words for the model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """A preset.

    Attributes:
        title: what people read.
        template: the prompt, with `{}` where the viewer's own words go.
        clip_skip: how many of the text encoder's last layers are left out, as diffusers counts it.
    """

    title: str
    template: str
    clip_skip: int = 1

    def prompt(self, words: str) -> str:
        """The whole prompt; without the viewer's words, that of the style alone."""
        return self.template.format(words.strip()).strip(" ,")


STYLES: dict[str, Style] = {
    "pencil": Style("Pencil", "a pencil drawing, {}"),
    "comic": Style("Comic", "a comic book picture, {}"),
    "neon": Style("Neon", "glowing neon lights, {}"),
    "oil": Style("Oil paint", "an oil painting, {}"),
    "woodcut": Style("Woodcut", "a woodcut print, {}"),
    "blueprint": Style("Blueprint", "a white on blue blueprint, {}"),
}


def find_style(name: str | None) -> Style:
    """The preset of that name; for None or an empty name, the viewer's words as they are.

    Raises:
        ValueError: there is none of that name; the message lists those there are.
    """
    if not name:
        return Style("None", "{}")
    if name not in STYLES:
        raise ValueError(f"There is no style {name[:40]!r}. Choose one of: {', '.join(STYLES)}.")
    return STYLES[name]
