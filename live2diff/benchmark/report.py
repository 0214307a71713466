"""The figures as a table for people."""

from __future__ import annotations

from typing import Any


def lines(record: dict[str, Any]) -> list[str]:
    """The lines of the table."""
    one = record["one"]
    height, width = one["working_size"]
    told = [
        f"{record['model']} ({record['weights']} weights, {record['dtype']}, {record['runtime']}) on "
        f"{record['device']}, torch {record['torch']}",
        f"{width}x{height}, {one['steps']} step(s), {record['measured_frames']} frames, median and 95th "
        "percentile",
        "",
        row("one viewer, whole frame", one["frame"], f"{one['fps']} FPS"),
        *(row(f"  {stage}", taken) for stage, taken in one["stages"].items()),
        row("first frame after the 8th camera frame", one["first_frame"]),
        row("change of prompt", one["prompt_change"]),
        "",
        row("UNet with its cache", one["without_cache"]["unet_cached"]),
        row(
            "UNet, window recomputed",
            one["without_cache"]["unet_recomputed"],
            f"{one['without_cache']['ratio']} times as long",
        ),
        row(
            "diffusers' img2img, frame by frame",
            one["img2img"]["frame"],
            f"{one['img2img']['ratio']} times as long as the stream's whole frame",
        ),
    ]
    if "eager" in one:
        slower = f"{one['eager']['ratio']} times as long"
        told.append(row("the same without its runtime", one["eager"]["frame"], slower))
    if "safety_checker" in one:
        times = f"{one['safety_checker']['ratio']} times a whole frame without it"
        told.append(row("safety checker, a picture", one["safety_checker"]["picture"], times))
    told.append("")
    for many in record["together"]:
        gain = f"{many['fps']} FPS in all, {many['times_one']} times one viewer's"
        told.append(row(f"{many['streams']} viewer(s), a frame of each", many["round"], gain))
    told += ["", f"cache of a stream: {one['cache_bytes_a_stream'] / 1e6:.1f} MB"]
    if record["peak_cuda_bytes"]:
        told.append(f"most memory of the GPU in use: {record['peak_cuda_bytes'] / 1e9:.2f} GB")
    if "long" in record:
        early, late = record["long"]["frames"]
        told.append(f"frame {late} costs {record['long']['ratio']} times what frame {early} does")
    return [*told, ""]


def row(name: str, taken: dict[str, float], remark: str = "") -> str:
    return f"{name:<40}{taken['p50_ms']:10.1f} ms {taken['p95_ms']:10.1f} ms  {remark}".rstrip()
