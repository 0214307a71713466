"""From records, one for each clip, style and variant, to averages and to what is printed."""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from .measure import TARGET

Record = dict[str, Any]
COLUMNS = ("warp_error", "depth_error", "edge_agreement", "style_distance", "own_style_frames")
HEADER = (
    f"{'clip':12} {'style':12} {'variant':15} {'warp':>7} {'depth':>8} {'edges':>6} {'style':>6} {'own':>5}"
)


def clip_line(clip: Record) -> str:
    """What a clip is, and what the source itself would reach in the table."""
    height, width = clip["size"]
    return (
        f"{clip['clip']}: {clip['frames']} frames of {width}x{height}, {clip['valid_share']:.0%} of the "
        f"pixels valid; the source itself: warp {clip['warp_error']:.4f}; mirrored: depth "
        f"{clip['mirrored_depth_error']:.5f}"
    )


def table_line(record: Record) -> str:
    """One line of the table; the last column is the share of frames nearest to their own style's target."""
    warp, depth, edges, style, own = (record[name] for name in COLUMNS)
    place = f"{Path(record['clip']).stem[:12]:12} {record['style'][:12]:12} {record['variant']:15}"
    nearest = record.get("nearest", record["style"])
    missed = "" if nearest == record["style"] else f"  nearest: {nearest}"
    return f"{place} {warp:7.4f} {depth:8.5f} {edges:6.3f} {style:6.3f} {own:5.0%}{missed}"


def averages(records: list[Record]) -> list[Record]:
    """The mean of each figure over the clips, for every style and variant."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record["style"], record["variant"]), []).append(record)
    return [
        {"clip": "average", "style": style, "variant": name}
        | {key: fmean(record[key] for record in group) for key in (*COLUMNS, "own_style_nearest")}
        for (style, name), group in groups.items()
    ]


def summary_of(style: str, records: list[Record], drifts: list[Record]) -> Record:
    """A style's (or all styles') records and drifts in terms of the aims.

    Ratios are of warp errors averaged over the records, `own_style_nearest` is the share of records, the
    drift that of the worst channel of the worst record.
    """

    def mean(variant: str, figure: str) -> float:
        return fmean(record[figure] for record in records if record["variant"] == variant)

    warp = mean("model", "warp_error")
    return {
        "style": style,
        "warp_error": warp,
        "warp_error_to_without_motion": warp / max(mean("without motion", "warp_error"), 1e-9),
        "warp_error_to_target": warp / max(mean(TARGET, "warp_error"), 1e-9),
        "own_style_nearest": mean("model", "own_style_nearest"),
        "drift_percent": max((drift["drift_percent"] for drift in drifts), default=None),
    }


def summaries(records: list[Record], drifts: list[Record]) -> list[Record]:
    """The summary of each style and, last, of all."""
    found = []
    for style in dict.fromkeys(record["style"] for record in records):
        own_records, own_drifts = (
            [record for record in some if record["style"] == style] for some in (records, drifts)
        )
        found.append(summary_of(style, own_records, own_drifts))
    return [*found, summary_of("all", records, drifts)]


def summary_lines(summary: list[Record]) -> Iterator[str]:
    """The summaries as a table."""
    yield f"{'style':12} {'warp':>7} {'/ no motion':>12} {'/ target':>9} {'own nearest':>12} {'drift':>8}"
    for line in summary:
        ratios = f"{line['warp_error_to_without_motion']:12.2f} {line['warp_error_to_target']:9.2f}"
        drift = "-" if line["drift_percent"] is None else f"{line['drift_percent']:.1f} %"
        own = f"{line['own_style_nearest']:12.0%}"
        yield f"{line['style'][:12]:12} {line['warp_error']:7.4f} {ratios} {own} {drift:>8}"
