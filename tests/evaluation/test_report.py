"""Averages over clips, and ratios of one variant's figures to another's."""

import pytest

from live2diff.evaluation.report import COLUMNS, averages, summaries


def test_averages_and_ratios():
    figures = dict.fromkeys(COLUMNS, 0.0)
    records = [
        {
            **figures,
            "clip": clip,
            "style": style,
            "variant": name,
            "own_style_nearest": own,
            "warp_error": warp,
        }
        for style, clip, own, warps in (
            ("ink", "one", 1.0, (0.1, 0.4, 0.2)),
            ("ink", "two", 0.0, (0.3, 0.4, 0.2)),
            ("oil", "one", 1.0, (0.2, 0.1, 0.4)),
        )
        for name, warp in zip(("model", "without motion", "target"), warps, strict=True)
    ]
    assert [record["warp_error"] for record in averages(records)] == pytest.approx(
        [0.2, 0.4, 0.2, 0.2, 0.1, 0.4]
    )
    drifts = [{"style": "ink", "drift_percent": 2.0}, {"style": "ink", "drift_percent": 5.0}]
    ink, oil, everything = summaries(records, drifts)
    assert (ink["style"], oil["style"], everything["style"]) == ("ink", "oil", "all")
    assert ink["warp_error_to_without_motion"] == pytest.approx(0.5)
    assert ink["warp_error_to_target"] == pytest.approx(1.0)
    assert ink["own_style_nearest"] == 0.5 and ink["drift_percent"] == 5.0
    assert oil["warp_error_to_without_motion"] == pytest.approx(2.0) and oil["drift_percent"] is None
    assert everything["warp_error_to_without_motion"] == pytest.approx(0.6 / 0.9)


def test_figures_that_were_not_measured_count_in_no_average():
    figures = dict.fromkeys(COLUMNS, 1.0)
    records = [
        {"clip": clip, "style": "ink", "variant": "model", **figures, "lag": lag, "moving_structure": moving}
        for clip, lag, moving in (("one", None, None), ("two", 3, 0.9), ("three", 1, 0.99), ("four", 0, 1.0))
    ]
    target = {**records[1], "variant": "target", "warp_error": 2.0}  # of one of the clips
    (average, _), (ink, _) = averages([*records, target]), summaries([*records, target], [])
    assert average["lag"] == pytest.approx(4 / 3)
    assert ink["lag_worst"] == 3 and ink["warp_error_to_without_motion"] is None
    assert ink["moving_structure"] == 0.99 and ink["moving_structure_worst"] == 0.9
    assert ink["warp_error_to_target"] == 0.5
