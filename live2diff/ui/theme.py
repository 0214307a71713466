"""The page's theme (ink on warm paper, in the system's fonts) and its static files."""

from pathlib import Path
from urllib.parse import quote

from gradio.themes import Base
from gradio.themes.utils import colors, sizes

STATIC = Path(__file__).parent / "static"
STYLESHEET = STATIC / "app.css"
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")

COLOURS = {  # on a light and on a dark screen
    "body_background_fill": ("#faf8f4", "#161412"),
    "body_text_color": ("#26221d", "#ece7df"),
    "body_text_color_subdued": ("#6b645b", "#a59d92"),
    "background_fill_primary": ("#fffefb", "#1f1c19"),
    "background_fill_secondary": ("#f4f0e9", "#262320"),
    "block_background_fill": ("#fffefb", "#1f1c19"),
    "block_border_color": ("#e6dfd4", "#3a352f"),
    "block_label_background_fill": ("#fffefb", "#1f1c19"),
    "border_color_primary": ("#e0d8cb", "#433d36"),
    "input_background_fill": ("#fffefb", "#262320"),
    "input_border_color": ("#d9d0c2", "#4a443c"),
    "button_primary_background_fill": ("*primary_600", "*primary_600"),
    "button_primary_background_fill_hover": ("*primary_700", "*primary_700"),
    "button_secondary_background_fill": ("#efe9df", "#332f2a"),
    "button_secondary_background_fill_hover": ("#e6dfd2", "#403b35"),
    "slider_color": ("*primary_600", "*primary_400"),
}
THEME = Base(
    primary_hue=colors.indigo,
    secondary_hue=colors.indigo,
    neutral_hue=colors.stone,
    spacing_size=sizes.spacing_md,
    radius_size=sizes.radius_lg,
    text_size=sizes.text_md,
    font=FONTS,
    font_mono=("ui-monospace", "monospace"),
).set(
    **{name: light for name, (light, _) in COLOURS.items()},
    **{f"{name}_dark": dark for name, (_, dark) in COLOURS.items()},
    block_border_width="1px",
    block_radius="14px",
    block_shadow="none",
    block_label_text_color="*body_text_color_subdued",
    block_title_text_color="*body_text_color",
    block_title_text_weight="600",
    border_color_accent="*primary_500",
    color_accent="*primary_600",
    input_border_width="1px",
    input_radius="10px",
    input_placeholder_color="#8b8379",
    button_primary_text_color="white",
    button_large_radius="12px",
    button_medium_radius="10px",
    button_small_radius="8px",
)


def file_url(path: Path | None) -> str:
    """Return the address of a static file relative to the page, "" for none."""
    return "" if path is None else f"gradio_api/file={quote(path.as_posix(), safe='/:')}"
