"""Average and compare records, one for each clip, style and variant; format them as tables."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import fmean, median

from ..benchmark.command import Record, table_row
from .measure import TARGET

COLUMNS = {  # of a record: title and format; "own" is the share of frames nearest to their own style's target
    "warp_error": ("warp", ".4f"),
    "depth_error": ("depth", ".5f"),
    "edge_agreement": ("edges", ".3f"),
    "moving_structure": ("moving", ".3f"),
    "still_flicker": ("still", ".2f"),
    "lag": ("lag", ".1f"),
    "seams": ("seams", ".2f"),
    "perceptual_distance": ("percept", ".3f"),
    "style_distance": ("style", ".3f"),
    "own_style_frames": ("own", ".0%"),
}
WIDTHS = (12, 12, 15, -7, -8, -6, -6, -6, -4, -6, -7, -6, -5, 0)
HEADER = table_row("clip", "style", "variant", *(title for title, _ in COLUMNS.values()), "", widths=WIDTHS)
SUMMARY = {  # of the model in a style: title, format and aim
    "warp_error": ("warp", ".4f", ""),
    "warp_error_to_without_motion": ("/ no motion", ".2f", "<= 0.7"),
    "warp_error_to_target": ("/ target", ".2f", "<= 1"),
    "moving_structure": ("moving", ".3f", ">= 0.985"),
    "moving_structure_worst": ("worst", ".3f", ">= 0.95"),
    "still_flicker": ("still", ".2f", "<= 0.8"),
    "lag_worst": ("lag", ".0f", "0"),
    "seams": ("seams", ".2f", "<= 1.1"),
    "perceptual_distance": ("percept", ".3f", ""),
    "own_style_nearest": ("own nearest", ".0%", "100%"),
    "drift_percent": ("drift %", ".1f", "<= 1"),
}
SUMMARY_WIDTHS = (12, *(-max(len(title), len(aim), 6) for title, _, aim in SUMMARY.values()))


def cell(value: float | None, style: str) -> str:
    """Format a figure; "-" if it was not measured."""
    return "-" if value is None else format(value, style)


def clip_line(clip: Record) -> str:
    """Describe a clip, with the figures of the source itself."""
    height, width = clip["size"]
    return (
        f"{clip['clip']}: {clip['frames']} frames of {width}x{height}, {clip['valid_share']:.0%} of the "
        f"pixels valid, {clip['moving_share']:.0%} moving, {clip['still_share']:.0%} still; the source "
        f"itself: warp {clip['warp_error']:.4f}, seams {cell(clip['seams'], '.2f')}; mirrored: depth "
        f"{clip['mirrored_depth_error']:.5f}"
    )


def record_row(record: Record) -> str:
    """Format a record; the last column names a missing target, or the nearest style if it is another."""
    names = Path(record["clip"]).stem[:12], record["style"][:12], record["variant"]
    figures = (cell(record.get(name), style) for name, (_, style) in COLUMNS.items())
    nearest = record.get("nearest", record["style"])
    missed = "" if nearest == record["style"] else f" nearest: {nearest}"
    note = missed if record.get("style_distance") is not None else " no target"
    return table_row(*names, *figures, note, widths=WIDTHS)


def mean_of(records: Iterable[Record], figure: str, average: Callable = fmean) -> float | None:
    """Average a figure over the records in which it was measured; None if there is none."""
    values = [value for record in records if (value := record.get(figure)) is not None]
    return average(values) if values else None


def averages(records: list[Record]) -> list[Record]:
    """Average each figure over the clips, for every style and variant."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record["style"], record["variant"]), []).append(record)
    return [
        {"clip": "average", "style": style, "variant": name}
        | {key: mean_of(group, key) for key in (*COLUMNS, "own_style_nearest")}
        for (style, name), group in groups.items()
    ]


def warp_ratio(model: list[Record], others: list[Record]) -> float | None:
    """Return the mean warp error of the model over that of others, where both were measured."""
    places = {(record["clip"], record["style"]) for record in others}
    own = mean_of((r for r in model if (r["clip"], r["style"]) in places), "warp_error")
    other = mean_of(others, "warp_error")
    return own / other if own is not None and other else None


def summaries(records: list[Record], drifts: list[Record]) -> list[Record]:
    """Summarise the model in each style and, last, in all; `SUMMARY` has the aims.

    Ratios are of warp errors averaged over the records, `own_style_nearest` is the share of records,
    `moving_structure` their median; the worst are those of any record, the drift that of any channel.
    """
    found = []
    for style in (*dict.fromkeys(record["style"] for record in records), "all"):
        of: dict[str, list[Record]] = {"model": [], "without motion": [], TARGET: []}
        for record in records:
            if style in (record["style"], "all"):
                of.setdefault(record["variant"], []).append(record)
        model = of["model"]
        figures = {name: mean_of(model, name) for name in SUMMARY} | {
            "warp_error_to_without_motion": warp_ratio(model, of["without motion"]),
            "warp_error_to_target": warp_ratio(model, of[TARGET]),
            "moving_structure": mean_of(model, "moving_structure", median),
            "moving_structure_worst": mean_of(model, "moving_structure", min),
            "lag_worst": mean_of(model, "lag", max),
            "drift_percent": mean_of(
                (record for record in drifts if style in (record["style"], "all")), "drift_percent", max
            ),
        }
        found.append({"style": style, **figures})
    return found


def summary_rows(summary: list[Record]) -> Iterator[str]:
    """Format the summaries as a table, the aims below."""
    titles, formats, aims = zip(*SUMMARY.values(), strict=True)
    yield table_row("style", *titles, widths=SUMMARY_WIDTHS)
    for record in summary:
        figures = map(cell, map(record.get, SUMMARY), formats)
        yield table_row(record["style"][:12], *figures, widths=SUMMARY_WIDTHS)
    yield table_row("aim", *aims, widths=SUMMARY_WIDTHS)
