"""A sweep that has ended, of made-up jobs: folders as `stages.sweep` leaves them, without running anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stages.sweeps import job
from stages.sweeps.results import Variant, variants
from tests import built

PLACE = Path("multirun/now")
Edit = Callable[[dict[str, Any]], Any]


def make_job(
    number: int, preset: str, drop: float, milliseconds: float, *, spread: float = 0.01, edits: Mapping[str, Edit] | None = None
) -> Path:
    """A job's folder. FP32 takes 12 ms in f32 and 6 ms in bf16.

    Args:
        number: The job's.
        preset: What it is made with.
        drop: Of the primary metric, whose interval reaches 1 point to either side.
        milliseconds: INT8's latency.
        spread: Of its ratios, as a share of them.
        edits: By path in build/, changes of the content of JSON files.
    """
    folder = job.folder_of(PLACE, number)
    built.write_build(folder, built.config(preset), drop=drop, milliseconds=milliseconds)
    (folder / "build" / "correct_bias" / "model.xml").write_text("x" * 1000)
    job.write(PLACE, job.Job(number, (f"preset={preset}",), (f"quantization.preset={preset}",)))
    job.write_result(PLACE, number, job.Result(None, 12.0))

    def narrow(speed: dict[str, Any]) -> None:
        for ratio in speed["speed_up"].values():
            ratio |= {"low": (1 - spread) * ratio["median"], "high": (1 + spread) * ratio["median"]}

    def mode(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if preset != "performance" and row["kind"] == "activations":
                row |= {"mode": "asymmetric", "low": -0.5, "sqnr_db": row["sqnr_db"] + number}

    everything: dict[str, Any] = {"evaluate/latency.json": narrow, "evaluate/layers.json": mode, **(edits or {})}
    for path, change in everything.items():
        file = folder / "build" / path
        content = json.loads(file.read_text())
        file.write_text(json.dumps(change(content) or content))
    return folder


def all_variants(count: int) -> list[Variant]:
    """The models of jobs 0 to count."""
    return [model for number in range(count) for model in variants(PLACE, job.read(PLACE, number))]
