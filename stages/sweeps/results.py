"""What became of a sweep's jobs: their models, read from their folders, and the table at the end of a sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.common import artifacts
from stages.common.errors import UserError
from stages.common.units import drop, metric_value, number
from stages.report.left_float import left_float
from stages.sweeps import job

Table = Sequence[Mapping[str, Any]]

INT8 = "int8"
SEARCHES = {"accuracy_aware": "accuracy-aware", "tune": "tuned"}  # what the models of these stages are called


@dataclass(frozen=True)
class Variant:
    """A model that a job made: the quantized one, or what a search made of it; where the job failed, only why.

    Attributes:
        number: The job's.
        label: What sets it apart from the others.
        error: None, or one line.
        seconds: Wall time of the job; None for what it made after its first model.
        config: Content of config.json.
        evaluation: Content of evaluation.json, for this model.
        speed: Of latency.json: `latency_ms` and `speed_up`, and `throughput` where it was measured, of this model as `int8`;
            empty without a benchmark.
        layers: Content of layers.json, for this model.
        kind: The stage's name for what a search made, else `int8`.
        warning: What a search did not achieve; empty where there is nothing to say.
    """

    number: int
    label: str
    error: str | None
    seconds: float | None
    config: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    speed: Mapping[str, Any] = field(default_factory=dict)
    layers: Table = ()
    kind: str = INT8
    warning: str = ""

    @property
    def primary(self) -> str:
        """Name of the metric that is reported first."""
        return str(next(iter(self.evaluation["metrics"])))

    @property
    def left_float(self) -> int:
        """Operations that could have been quantized and were not."""
        return len({entry.name for entry in left_float(self.layers)})


def variants(sweep: Path, entry: job.Job) -> list[Variant]:
    """The models of a job that has ended, the quantized one first; one without a model where it failed."""
    result, build = job.result_of(sweep, entry.number), job.folder_of(sweep, entry.number) / artifacts.BUILD
    known = Variant(entry.number, entry.label, result.error, result.seconds)
    if result.error is not None:
        return [known]
    try:
        tables = {name: artifacts.read_json(build / "evaluate" / f"{name}.json") for name in ("evaluation", "latency", "layers")}
        config = artifacts.read_json(build / artifacts.CONFIG.name)
        known = dataclasses.replace(known, config=config, evaluation=tables["evaluation"], speed=tables["latency"], layers=tables["layers"])
        return [known, *_searched(build, known)]
    except (OSError, UserError) as error:
        return [Variant(entry.number, entry.label, f"its results cannot be read: {error}", result.seconds)]


def _searched(build: Path, quantized: Variant) -> Iterator[Variant]:
    """What the searches made of the quantized model."""
    for stage, name in SEARCHES.items():
        folder = build / stage
        result = artifacts.read_json(folder / "result.json")
        if not result["enabled"]:
            continue
        found = result["best"] if stage == "tune" else result
        kept = found["within_budget"] if stage == "tune" else found["holds"]
        measured = artifacts.read_json(folder / "latency.json") if (folder / "latency.json").exists() else {}
        yield dataclasses.replace(
            quantized,
            label=f"{quantized.label}, {name}",
            seconds=None,
            evaluation={
                **quantized.evaluation,
                "metrics": found["metrics" if stage == "tune" else "judged"],
                "size_bytes": {**quantized.evaluation["size_bytes"], INT8: artifacts.model_bytes(folder)},
            },
            speed=_speed(measured, "best" if stage == "tune" else stage, quantized.speed),
            layers=_layers(folder, quantized.layers),
            kind=stage,
            warning="" if kept else f"the accuracy budget of {stage} is NOT KEPT",
        )


def _speed(measured: Mapping[str, Any], model: str, quantized: Mapping[str, Any]) -> dict[str, Any]:
    """A search's latency.json in the words of evaluate's.

    What was timed only beside FP32 in the default precision is related to f32 by what evaluate measured of the two.
    """
    if not measured:
        return {}
    ratios = {name: ratio for name, ratio in measured["speed_up"].items() if name in ("fp32", "default")}
    if "fp32" not in ratios and quantized:
        scale = quantized["speed_up"]["fp32"]["median"] / quantized["speed_up"]["default"]["median"]
        ratios["fp32"] = {side: scale * value for side, value in ratios["default"].items()}
    return {"latency_ms": {INT8: measured["latency_ms"][model]}, "speed_up": ratios}


def _layers(folder: Path, quantized: Table) -> Table:
    """The per-layer table of a search's model; noise and run time were measured of the quantized one only."""
    from stages.quantization.layer_table import layer_table

    order = dict.fromkeys(row["layer"].removesuffix(f":{row['port']}").partition(" < ")[0] for row in quantized)
    quantizers, corrections = (artifacts.read_json(folder / f"{name}.json") for name in ("quantizers", "corrections"))
    return layer_table(quantizers, corrections, {}, [], order)


def table(variants: Sequence[Variant], sweep: Path, *, parallel: bool) -> str:
    """One line per model: primary metric, drop, latency, speed-up, size, what stayed float; those that failed say why."""
    done = [each for each in variants if each.error is None]
    rows = [["", "job", "metric", "FP32", "INT8", "drop", "latency", "against f32", "against default", "size", "left float", "time"]]
    rows += [[str(each.number), each.label, *_cells(each), "" if each.seconds is None else f"{each.seconds:.0f} s"] for each in done]
    lines = aligned(rows) if done else []
    lines += [f"{each.number}  {each.label}: {each.warning}" for each in done if each.warning]
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
        drop(metric, metric),
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
