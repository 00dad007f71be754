"""What became of a sweep's jobs: their results read from their folders, and the table at the end of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stages import artifacts, job
from stages.errors import UserError
from stages.reasons import left_float
from stages.units import difference, metric_value, number

Table = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Variant:
    """A job's result; where it failed, only why.

    Attributes:
        number: The job's.
        label: What sets it apart from the others.
        error: None, or one line.
        seconds: Wall time of the job.
        config: Content of config.yaml.
        evaluation: Content of evaluation.json.
        speed: Content of latency.json; empty without a benchmark.
        layers: Content of layers.json.
    """

    number: int
    label: str
    error: str | None
    seconds: float
    config: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    speed: Mapping[str, Any] = field(default_factory=dict)
    layers: Table = ()

    @property
    def primary(self) -> str:
        """Name of the metric that is reported first."""
        return str(next(iter(self.evaluation["metrics"])))

    @property
    def left_float(self) -> int:
        """Operations that could have been quantized and were not."""
        return len({entry.name for entry in left_float(self.layers)})


def variant(sweep: Path, entry: job.Job) -> Variant:
    """The result of a job that has ended."""
    result, build = job.result_of(sweep, entry.number), job.folder_of(sweep, entry.number) / artifacts.BUILD
    known = Variant(entry.number, entry.label, result.error, result.seconds)
    if result.error is not None:
        return known
    try:
        tables = {name: artifacts.read_json(build / "evaluate" / f"{name}.json") for name in ("evaluation", "latency", "layers")}
        config = yaml.safe_load((build / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UserError) as error:
        return Variant(entry.number, entry.label, f"its results cannot be read: {error}", result.seconds)
    return Variant(entry.number, entry.label, None, result.seconds, config, tables["evaluation"], tables["latency"], tables["layers"])


def table(variants: Sequence[Variant], sweep: Path, *, parallel: bool) -> str:
    """One line per job: primary metric, drop, latency, speed-up, size, what stayed float; those that failed say why."""
    done = [each for each in variants if each.error is None]
    rows = [["", "job", "metric", "FP32", "INT8", "drop", "latency", "against f32", "against default", "size", "left float", "time"]]
    rows += [[str(each.number), each.label, *_cells(each), f"{each.seconds:.0f} s"] for each in done]
    lines = aligned(rows) if done else []
    for each in variants:
        if each.error is not None:
            lines.append(f"{each.number}  {each.label}: FAILED, {each.error}")
            if job.log_of(sweep, each.number).exists():
                lines.append(f"   its output: {job.log_of(sweep, each.number)}")
    if parallel and any(each.speed for each in done):
        lines.append("latencies: jobs ran at the same time; the factors are measured side by side and less disturbed than milliseconds")
    return "\n".join(lines)


def _cells(each: Variant) -> list[str]:
    metric = each.evaluation["metrics"][each.primary]
    unit = " points" if metric["share"] else ""
    drop = f"{difference(metric, metric['drop'])}{unit}"
    if metric["drop_low"] is not None:
        drop += f" [{difference(metric, metric['drop_low'])}, {difference(metric, metric['drop_high'])}]"
    speed = ["-", "-", "-"]
    if each.speed:
        factors = [factor(each.speed["speed_up"][model]) for model in ("fp32", "default")]
        precision = each.evaluation["precisions"]["default"]
        speed = [
            f"{number(each.speed['latency_ms']['int8']['median'])} ms",
            factors[0],
            "-" if precision == "f32" else f"{factors[1]} ({precision})",
        ]
    size = f"{each.evaluation['size_bytes']['int8'] / 1e6:.2f} MB"
    return [
        each.primary,
        metric_value(metric, metric["fp32"]),
        metric_value(metric, metric["int8"]),
        drop,
        *speed,
        size,
        str(each.left_float),
    ]


def factor(ratio: Mapping[str, float]) -> str:
    """How many times faster: `2.18x`; in brackets where the measurement does not tell which one is."""
    text = f"{ratio['median']:.2f}x"
    return f"({text})" if ratio["low"] <= 1.0 <= ratio["high"] else text


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns, the first to the right, the next two to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    sides = [">", "<", "<", *(">" for _ in widths[3:])]
    return ["  ".join(f"{text:{side}{width}}" for text, side, width in zip(row, sides, widths, strict=True)).rstrip() for row in rows]
