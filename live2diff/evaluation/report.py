"""Average and compare records, one for each clip, style and variant; format them as tables."""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from ..benchmark.command import Record, table_row
from .measure import TARGET

COLUMNS = {
    "warp_error": ".4f",
    "depth_error": ".5f",
    "edge_agreement": ".3f",
    "style_distance": ".3f",
    "own_style_frames": ".0%",
}
WIDTHS = (12, 12, 15, -7, -8, -6, -6, -5, 0)
HEADER = table_row("clip", "style", "variant", "warp", "depth", "edges", "style", "own", "", widths=WIDTHS)
SUMMARY_WIDTHS = (12, -7, -12, -9, -12, -8)


def clip_line(clip: Record) -> str:
    """Describe a clip, and what the source itself would reach in the table."""
    height, width = clip["size"]
    return (
        f"{clip['clip']}: {clip['frames']} frames of {width}x{height}, {clip['valid_share']:.0%} of the "
        f"pixels valid; the source itself: warp {clip['warp_error']:.4f}; mirrored: depth "
        f"{clip['mirrored_depth_error']:.5f}"
    )


def record_row(record: Record) -> str:
    """Format a record; "own" is the share of frames nearest to their own style's target."""
    names = Path(record["clip"]).stem[:12], record["style"][:12], record["variant"]
    nearest = record.get("nearest", record["style"])
    missed = "" if nearest == record["style"] else f" nearest: {nearest}"
    figures = (format(record[name], style) for name, style in COLUMNS.items())
    return table_row(*names, *figures, missed, widths=WIDTHS)


def averages(records: list[Record]) -> list[Record]:
    """Average each figure over the clips, for every style and variant."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record["style"], record["variant"]), []).append(record)
    return [
        {"clip": "average", "style": style, "variant": name}
        | {key: fmean(record[key] for record in group) for key in (*COLUMNS, "own_style_nearest")}
        for (style, name), group in groups.items()
    ]


def summaries(records: list[Record], drifts: list[Record]) -> list[Record]:
    """Compare with the aims: each style and, last, all.

    Ratios are of warp errors averaged over the records, `own_style_nearest` is the share of records, the
    drift that of the worst channel of the worst record.
    """
    styles = [*dict.fromkeys(record["style"] for record in records), "all"]
    found = []
    for style in styles:

        def mean(variant: str, figure: str, style: str = style) -> float:
            wanted = [r for r in records if r["variant"] == variant and style in (r["style"], "all")]
            return fmean(record[figure] for record in wanted)

        warp = mean("model", "warp_error")
        drift = [record["drift_percent"] for record in drifts if style in (record["style"], "all")]
        found.append(
            {
                "style": style,
                "warp_error": warp,
                "warp_error_to_without_motion": warp / max(mean("without motion", "warp_error"), 1e-9),
                "warp_error_to_target": warp / max(mean(TARGET, "warp_error"), 1e-9),
                "own_style_nearest": mean("model", "own_style_nearest"),
                "drift_percent": max(drift, default=None),
            }
        )
    return found


def summary_rows(summary: list[Record]) -> Iterator[str]:
    """Format the summaries as a table."""
    titles = ("style", "warp", "/ no motion", "/ target", "own nearest", "drift")
    yield table_row(*titles, widths=SUMMARY_WIDTHS)
    for record in summary:
        yield table_row(
            record["style"][:12],
            f"{record['warp_error']:.4f}",
            f"{record['warp_error_to_without_motion']:.2f}",
            f"{record['warp_error_to_target']:.2f}",
            f"{record['own_style_nearest']:.0%}",
            "-" if record["drift_percent"] is None else f"{record['drift_percent']:.1f} %",
            widths=SUMMARY_WIDTHS,
        )
