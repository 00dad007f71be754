"""What became of a sweep's jobs: their models, read from their folders, and the table at the end of a sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.common import artifacts
from stages.common.errors import UserError
from stages.common.units import drop, metric_value
from stages.report.choice import Candidate, losses
from stages.report.facts import at_the_outputs, budget_of, wrong
from stages.report.left_float import left_float
from stages.report.measured import Model, models
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
        warnings: What a user must know of it.
        kept: Whether a search's budget holds; None of what no search has made.
        model: Its model.xml.
        final: How many times faster than FP32 in the default precision it was beside the other finalists; None where it was not among them.
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
    warnings: tuple[str, ...] = ()
    kept: bool | None = None
    model: Path = Path()
    final: Mapping[str, float] | None = None

    @property
    def name(self) -> str:
        """Its job's number and its label."""
        return f"{self.number} {self.label}"

    @property
    def title(self) -> str:
        """What it is called in a sentence."""
        return f"job {self.number} ({self.label})"

    @property
    def primary(self) -> str:
        """Name of the metric that is reported first."""
        return str(next(iter(self.evaluation["metrics"])))

    @property
    def left_float(self) -> int:
        """Operations that could have been quantized and were not."""
        return len({entry.name for entry in left_float(self.layers)})

    @property
    def ratio(self) -> Mapping[str, float] | None:
        """How many times faster than FP32 in the default precision it is, by the measurement whose rounds agree best."""
        known = [ratio for ratio in (self.final, self.speed.get("speed_up", {}).get("default")) if ratio is not None]
        return min(known, key=lambda ratio: ratio["high"] / ratio["low"], default=None)

    @property
    def candidate(self) -> Candidate:
        """It as one that may be deployed."""
        budget = budget_of(self.kind, self.config, self.primary)
        judged = losses(self.evaluation["metrics"], self.evaluation["samples"], budget, self.primary)
        return Candidate(self.title, judged, self.ratio, wrong(self.evaluation.get("fidelity", {})), self.kept, self.final)


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
        return [_variant(known, model) for model in models(build)]
    except (OSError, UserError) as error:
        return [Variant(entry.number, entry.label, f"its results cannot be read: {error}", result.seconds)]


def _variant(quantized: Variant, model: Model) -> Variant:
    """A model of a job; `quantized` knows what evaluate measured."""
    if model.kind == INT8:
        others = [text for text in quantized.evaluation["warnings"] if text != model.fidelity.get("warning")]
        return dataclasses.replace(quantized, warnings=(*others, *_unfaithful(model.fidelity)), model=model.path)
    warnings = [*([] if model.kept else [f"the accuracy budget of {model.kind} is NOT KEPT"]), *_unfaithful(model.fidelity)]
    sizes = {**quantized.evaluation["size_bytes"], INT8: model.size}
    return dataclasses.replace(
        quantized,
        label=f"{quantized.label}, {SEARCHES[model.kind]}",
        seconds=None,
        evaluation={**quantized.evaluation, "metrics": model.metrics, "size_bytes": sizes, "fidelity": model.fidelity},
        speed=model.speed,
        layers=_layers(model.folder, quantized.layers),
        kind=model.kind,
        warnings=tuple(warnings),
        kept=model.kept,
        model=model.path,
    )


def _unfaithful(fidelity: Mapping[str, Any]) -> list[str]:
    """What is to be said of a model that the device does not compute as it says; the same words for what may be so in many jobs."""
    if not fidelity.get("warning"):
        return []
    if not fidelity.get("saturates"):
        return [str(fidelity["warning"])]
    where = "also at the outputs" if at_the_outputs(fidelity) else "though not at the outputs"
    return [f"sums of 16 bits saturate on this device, {where}: try `quantization.saturation_fix=all`, or a device with VNNI"]


def _layers(folder: Path, quantized: Table) -> Table:
    """The per-layer table of a search's model; noise and run time were measured of the quantized one only."""
    from stages.quantization.layer_table import layer_table

    order = dict.fromkeys(row["layer"].removesuffix(f":{row['port']}").partition(" < ")[0] for row in quantized)
    quantizers, corrections = (artifacts.read_json(folder / f"{name}.json") for name in ("quantizers", "corrections"))
    return layer_table(quantizers, corrections, {}, [], order)


def table(variants: Sequence[Variant], sweep: Path, *, parallel: bool) -> str:
    """One line per model: primary metric, drop, speed-ups, size, what stayed float; those that failed say why.

    Without milliseconds: jobs are timed minutes apart, and only what was timed side by side can be compared.
    """
    done = [each for each in variants if each.error is None]
    titles = ["", "job", "metric", "FP32", "INT8", "drop", "against f32", "against default", "side by side", "size", "left float", "time"]
    rows = [titles]
    rows += [[str(each.number), each.label, *_cells(each), "" if each.seconds is None else f"{each.seconds:.0f} s"] for each in done]
    empty = {place for place in range(len(titles)) if all(row[place] == "-" for row in rows[1:])}  # the default precision may be f32
    rows = [[cell for place, cell in enumerate(row) if place not in empty] for row in rows]
    lines = aligned(rows) if done else []
    lines += [f"{numbers}  WARNING: {text}" for numbers, text in warned(done)]
    for each in variants:
        if each.error is not None:
            lines.append(f"{each.number}  {each.label}: FAILED, {each.error}")
            if job.log_of(sweep, each.number).exists():
                lines.append(f"   its output: {job.log_of(sweep, each.number)}")
    if parallel and any(each.speed for each in done):
        lines.append(
            "jobs ran at the same time: factors are measured side by side, and yet more disturbed than those of one job after another"
        )
    return "\n".join(lines)


def warned(done: Sequence[Variant]) -> list[tuple[str, str]]:
    """The warnings of all models, each once, with the numbers of the jobs that it is of."""
    numbers: dict[str, list[str]] = {}
    for each in done:
        for text in each.warnings:
            name = str(each.number) if each.kind == INT8 else f"{each.number} ({SEARCHES[each.kind]})"
            numbers.setdefault(text, []).append(name)
    return [(", ".join(names), text) for text, names in numbers.items()]


def _cells(each: Variant) -> list[str]:
    metric = each.evaluation["metrics"][each.primary]
    speed = ["-", "-"]
    precision = each.evaluation["precisions"]["default"]
    if each.speed:
        factors = [factor(each.speed["speed_up"][model]) for model in ("fp32", "default")]
        speed = [factors[0], "-" if precision == "f32" else f"{factors[1]} ({precision})"]
    size = f"{each.evaluation['size_bytes']['int8'] / 1e6:.2f} MB"
    return [
        each.primary,
        metric_value(metric, metric["fp32"]),
        metric_value(metric, metric["int8"]),
        drop(metric, metric),
        *speed,
        "-" if each.final is None else factor(each.final),
        size,
        str(each.left_float),
    ]


def factor_range(ratio: Mapping[str, float]) -> str:
    """How many times faster, with what four rounds in five measured: `2.18x [2.10, 2.27]`."""
    return f"{ratio['median']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def factor(ratio: Mapping[str, float]) -> str:
    """How many times faster: `2.18x`; in brackets where the measurement does not tell which one is."""
    text = f"{ratio['median']:.2f}x"
    return f"({text})" if ratio["low"] <= 1.0 <= ratio["high"] else text


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns, the first to the right, the next two to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    sides = [">", "<", "<", *(">" for _ in widths[3:])]
    return ["  ".join(f"{text:{side}{width}}" for text, side, width in zip(row, sides, widths, strict=True)).rstrip() for row in rows]
