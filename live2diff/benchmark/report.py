"""Print the figures of a benchmark as a table."""

from collections.abc import Iterator
from typing import Any

from .command import Record, table_row

WIDTHS = (44, -12, -12)


def lines(record: Record) -> list[str]:
    """Format the table: times are medians and 95th percentiles, ratios are of medians."""
    one = record["one"]
    height, width = one["working_size"]
    return [
        f"{record['model']} ({record['weights']} weights, {record['dtype']}, {record['runtime']}) on "
        f"{record['device']}, torch {record['torch']}",
        f"{width}x{height}, {one['steps']} step(s), {record['measured_frames']} frames",
        "",
        table_row("", "median", "95th", widths=WIDTHS),
        *rows("one viewer", one),
        *(row for many in record["together"] for row in rows(f"{many['streams']} viewers", many)),
        *rows("long stream", record.get("long", {})),
        "",
    ]


def rows(name: str, value: Any) -> Iterator[str]:
    """Yield rows for a figure, or for all figures of a record, named after it."""
    if isinstance(value, dict) and "p50_ms" in value:
        yield table_row(name, *(f"{value[key]:.1f} ms" for key in ("p50_ms", "p95_ms")), widths=WIDTHS)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from rows(f"{name}, {key.replace('_', ' ')}", inner)
    elif isinstance(value, float) or name.endswith("bytes a stream"):
        yield table_row(name, f"{value:,}", "", widths=WIDTHS)
