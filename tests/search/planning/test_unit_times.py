"""Times of units from times of nodes."""

from __future__ import annotations

import pytest

from stages.measurement.latency import NodeTime
from stages.search.planning.unit_times import unit_times

UNITS = {"conv1": "conv1", "add1": "conv1", "conv1/fq": "conv1", "conv2": "conv2"}


def test_times_are_scaled_to_what_the_model_takes_and_go_to_whom_they_belong() -> None:
    nodes = [
        NodeTime(("conv1", "relu1"), 30.0, "brgconv"),
        NodeTime(("relu9", "conv2/DequantizationMultiply"), 10.0, "brgconv"),  # behind a name of nobody's
        NodeTime(("conv1/fq",), 5.0, "fake quantize"),
        NodeTime(("reorder",), 5.0, "reorder"),
    ]
    assert unit_times(nodes, UNITS, 2.0) == {"conv1": pytest.approx(1.4), "conv2": pytest.approx(0.4)}


def test_a_device_that_reports_no_times_gives_none() -> None:
    assert unit_times([], UNITS, 2.0) == {}
