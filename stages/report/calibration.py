"""What was collected with inference, and why it took more than the one pass: sentences for the summary and the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.common import artifacts
from stages.common.units import plural


def statistics_collected() -> str | None:
    """What the calibration samples were run for in collect_statistics; None where that is not on record."""
    path = artifacts.record("collect_statistics")
    record = artifacts.read_json(path) if path.exists() else {}
    if "tensors" not in record:
        return None
    text = f"over {plural(record['samples'], 'sample')} collected {plural(record['tensors'], 'tensor')}"
    if empty := record.get("empty"):
        text += f", {empty['tensors']} of them empty for up to {plural(empty['samples'], 'sample')}, which are left out"
    if record["passes"] == 1:
        return f"one pass {text}"
    return f"{record['passes']} passes {text}, few at a time to spare memory (collect_statistics.inplace_statistic)"


def corrected_by(corrections: Mapping[str, Any]) -> str:
    """By which algorithm biases were corrected, and what it had to run."""
    text = f"by {corrections['algorithm']}"
    if "samples" not in corrections:
        return text
    return f"{text} on {plural(corrections['samples'], 'sample')} (run layer by layer, as what a layer reads depends on those before it)"


def tuned_from(tuning: Mapping[str, Any]) -> str:
    """What layer-wise tuning had to collect."""
    passes = "one more pass" if tuning["passes"] == 1 else f"{tuning['passes']} more passes"
    samples = plural(tuning["samples"], "sample")
    return f"{passes} over {samples} collected inputs and outputs of layers, of which statistics hold only means"
