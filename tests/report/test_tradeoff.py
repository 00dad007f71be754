"""The picture of accuracy against speed."""

from __future__ import annotations

import itertools

import pytest

from stages.report.tradeoff import HEIGHT, LABEL, Point, apart, picture, ticks


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.5), (85.6, 89.9), (0.0, 0.0), (-3e-4, 2e-3), (1e6, 1.0001e6), (5.0, 5.0)])
def test_ticks_are_few_round_and_enclose_the_values(low: float, high: float) -> None:
    values = ticks(low, high)
    assert 3 <= len(values) <= 13
    assert values[0] <= low and values[-1] >= high
    steps = {round(after - before, 9) for before, after in itertools.pairwise(values)}
    assert len(steps) == 1
    assert f"{steps.pop():e}"[0] in "125"


@pytest.mark.parametrize("heights", [[0.0, 0.0, 0.0], [300.0, 310.0, 320.0], [10.0, 200.0], [150.0, 150.0, 20.0, 151.0]])
def test_labels_do_not_cover_each_other(heights: list[float]) -> None:
    placed = sorted(apart(heights))
    assert placed[0] >= 0 and placed[-1] <= HEIGHT - LABEL
    assert all(after - before >= LABEL - 0.01 for before, after in itertools.pairwise(placed))


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_better_is_up_and_faster_is_left(higher_is_better: bool) -> None:
    better, worse = (0.9, 0.8) if higher_is_better else (0.8, 0.9)
    points = [Point("FP32", "fp32", 6.0, better, "", (5.5, 6.5)), Point("INT8", "int8", 3.0, worse, "", (2.9, 3.1), (0.75, 0.95))]
    drawn = picture(points, [Point("trial", "trial", 2.0, 0.7, "")], "score", "", higher_is_better=higher_is_better)
    fp32, int8 = drawn.marks
    assert fp32.y < int8.y and int8.x < fp32.x
    assert int8.left < int8.x < int8.right and int8.top < int8.y < int8.bottom
    assert drawn.reference == fp32.y
    places = [value for mark in (*drawn.marks, *drawn.trials) for value in (mark.left, mark.right)]
    assert min(places) >= 0 and max(places) <= 100
    heights = [value for mark in (*drawn.marks, *drawn.trials) for value in (mark.top, mark.bottom)]
    assert min(heights) >= 0 and max(heights) <= HEIGHT
