"""The comparison of a sweep's jobs as one page: metrics, accuracy against speed, and layers, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.common.units import drop, metric_value, model_names, number
from stages.report.page import environment
from stages.report.tradeoff import Picture, Point, picture
from stages.sweeps.results import INT8, SEARCHES, Variant, factor

MOST_LAYERS = 400  # of those that are alike in all jobs
LONGEST_LABEL = 28  # characters of a label in the picture; where the table has a longer one, the job's number stands for it


@dataclass(frozen=True)
class Row:
    """A line of a table: one cell per job, and the places of the best ones."""

    name: str
    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()
    note: str = ""


@dataclass(frozen=True)
class Layer:
    """An input of a layer: per job how it is quantized, and range and noise in small print."""

    name: str
    type: str
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Comparison:
    """Everything on the page."""

    overrides: str
    subject: str
    names: tuple[str, ...]  # of the models, with the numbers of their jobs
    failed: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    results: tuple[Row, ...]
    picture: Picture | None
    different: tuple[Layer, ...]
    alike: tuple[Layer, ...]
    more_alike: int
    settings: tuple[Row, ...]
    confidence: str
    parallel: bool


def page(overrides: Sequence[str], variants: Sequence[Variant], *, parallel: bool) -> str:
    """The page; at least one of the variants succeeded."""
    return (
        environment(Path(__file__).parent)
        .get_template("comparison.html")
        .render(comparison=compared(overrides, variants, parallel=parallel))
    )


def compared(overrides: Sequence[str], variants: Sequence[Variant], *, parallel: bool) -> Comparison:
    """What the page says."""
    done = [each for each in variants if each.error is None]
    layers = list(_layers(done))
    different = [layer for layer, differs in layers if differs]
    alike = [layer for layer, differs in layers if not differs]
    subjects = dict.fromkeys(f"{each.config['model']['name']} on {each.config['data']['name']}" for each in done)
    return Comparison(
        overrides=" ".join(overrides),
        subject=", ".join(subjects),
        names=tuple(f"{each.number} {each.label}" for each in done),
        failed=tuple((each.label, each.error) for each in variants if each.error is not None),
        warnings=tuple(f"{each.label}: {each.warning}" for each in done if each.warning),
        results=tuple(_results(done)),
        picture=_picture(done),
        different=tuple(different),
        alike=tuple(alike[:MOST_LAYERS]),
        more_alike=max(0, len(alike) - MOST_LAYERS),
        settings=tuple(_settings(done)),
        confidence=f"{100 * done[0].evaluation['confidence']:g} %",
        parallel=parallel,
    )


# ------------------------------------------------------------------------------------------------ results


def _results(done: Sequence[Variant]) -> Iterator[Row]:
    names = dict.fromkeys(name for each in done for name in each.evaluation["metrics"])
    for name in names:
        metrics = [each.evaluation["metrics"].get(name) for each in done]
        higher = all(metric["higher_is_better"] for metric in metrics if metric)
        note = "" if higher else "less is better"

        def row(
            title: str, key: str, *, best: bool = False, metrics: Sequence[Any] = metrics, higher: bool = higher, note: str = note
        ) -> Row:
            cells = tuple(metric_value(metric, metric[key]) if metric else "–" for metric in metrics)
            return Row(title, cells, _best([metric and metric[key] for metric in metrics], higher=higher) if best else frozenset(), note)

        yield row(f"{name}, FP32", "fp32")
        yield row(f"{name}, INT8", "int8", best=True)
        yield Row(
            f"drop of {name}",
            tuple(drop(metric, metric) if metric else "–" for metric in metrics),
            note="FP32 minus INT8" if higher else "INT8 minus FP32",
        )
    if any(each.speed for each in done):
        yield _faster(done, "fp32", "f32")
        if all(each.evaluation["precisions"]["default"] != "f32" for each in done):
            precisions = dict.fromkeys(each.evaluation["precisions"]["default"] for each in done)
            yield _faster(done, "default", " or ".join(precisions), "this device's default; in brackets: no clear difference")
        yield _row("latency", [_latency(each) for each in done], lambda value: f"{number(value)} ms", higher=False)
        rates = [each.speed["throughput"][INT8] if "throughput" in each.speed else None for each in done]
        yield _row("throughput", rates, lambda value: f"{number(value)} /s", higher=True)
    sizes = [each.evaluation["size_bytes"][INT8] / 1e6 for each in done]
    yield _row("size", sizes, lambda value: f"{value:.2f} MB", higher=False)
    kept = tuple(str(each.left_float) for each in done)
    yield Row("operations left in floating point", kept)


def _row(name: str, values: Sequence[float | None], text: Callable[[float], str], *, higher: bool) -> Row:
    return Row(name, tuple("–" if value is None else text(value) for value in values), _best(values, higher=higher))


def _faster(done: Sequence[Variant], model: str, precision: str, note: str = "") -> Row:
    ratios = [each.speed["speed_up"][model] if each.speed else None for each in done]
    cells = tuple("–" if ratio is None else factor(ratio) for ratio in ratios)
    best = _best([ratio and ratio["median"] for ratio in ratios], higher=True)
    return Row(f"faster than FP32 in {precision}", cells, frozenset(place for place in best if not cells[place].startswith("(")), note)


def _latency(each: Variant) -> float | None:
    return each.speed["latency_ms"][INT8]["median"] if each.speed else None


def _best(values: Sequence[float | None], *, higher: bool) -> frozenset[int]:
    """The places of the best value; none where all are the same."""
    known = {value for value in values if value is not None}
    if len(known) < 2:
        return frozenset()
    best = max(known) if higher else min(known)
    return frozenset(place for place, value in enumerate(values) if value == best)


def _short(each: Variant) -> str:
    """What a point of the picture is called: `preset=mixed`, or `job 3, tuned`."""
    if len(each.label) <= LONGEST_LABEL:
        return each.label
    return f"job {each.number}" + (f", {SEARCHES[each.kind]}" if each.kind in SEARCHES else "")


def _picture(done: Sequence[Variant]) -> Picture | None:
    """The primary metric against the time of an inference, in percent of FP32's in f32, which each job has measured beside its own."""
    done = [each for each in done if each.speed]
    if not done or len({each.primary for each in done}) > 1:
        return None
    name = done[0].primary
    metric = done[0].evaluation["metrics"][name]
    scale, sign = (100.0 if metric["share"] else 1.0), (1.0 if metric["higher_is_better"] else -1.0)
    points = [Point("FP32 (f32)", "fp32", 100.0, scale * metric["fp32"], metric_value(metric, metric["fp32"]))]
    if (default := model_names(done[0].evaluation["precisions"]).get("default")) is not None:
        shares = sorted(100 * each.speed["speed_up"]["default"]["median"] / each.speed["speed_up"]["fp32"]["median"] for each in done)
        points.append(Point(default, "fp32", shares[len(shares) // 2], scale * metric["default"], metric_value(metric, metric["default"])))
    for each in done:
        metric, ratio = each.evaluation["metrics"][name], each.speed["speed_up"]["fp32"]
        interval = None
        if metric["drop_low"] is not None:
            low, high = (scale * (metric["fp32"] - sign * metric[side]) for side in ("drop_high", "drop_low"))
            interval = (low, high)
        times = (100 / ratio["high"], 100 / ratio["low"])
        text = f"{metric_value(metric, metric['int8'])}, {ratio['median']:.2f}x"
        points.append(Point(_short(each), each.kind, 100 / ratio["median"], scale * metric["int8"], text, times, interval))
    return picture(points, [], name, "%" if metric["share"] else "", higher_is_better=metric["higher_is_better"])


# ------------------------------------------------------------------------------------------------ layers, settings


def _layers(done: Sequence[Variant]) -> Iterator[tuple[Layer, bool]]:
    """Every input of every layer that one of the jobs quantizes, and whether the jobs treat it differently."""
    tables = [{(row["layer"], row["kind"] == "weights"): row for row in each.layers} for each in done]
    places = dict.fromkeys(key for rows in tables for key, row in rows.items())
    for key in places:
        rows = [rows.get(key) for rows in tables]
        if all(row is None or row["kind"] == "float" for row in rows) and len({row and row["float_reason"] for row in rows}) == 1:
            continue  # float everywhere, for the same reason
        kinds = [row["type"] for row in rows if row and row.get("type")]
        cells = tuple(_scheme(row) for row in rows)
        yield (
            Layer(key[0], kinds[0] if kinds else "", cells),
            len({scheme for scheme, _ in cells}) > 1 or len({_range(row) for row in rows}) > 1,
        )


def _scheme(row: Mapping[str, Any] | None) -> tuple[str, str]:
    """How an input is quantized, and what came of it."""
    if row is None:
        return "–", ""
    if row["kind"] == "float":
        return f"float: {row['float_reason']}", ""
    granularity = {"pertensor": "per tensor", "perchannel": "per channel"}.get(str(row.get("granularity")), "")
    parts = [row["kind"], f"{row['bits']} bits" if row.get("bits") else "", row.get("mode") or "", granularity]
    noise = f"{row['sqnr_db']:.1f} dB" if row.get("sqnr_db") is not None else ""
    return ", ".join(part for part in parts if part), " · ".join(part for part in (_range(row), noise) if part)


def _range(row: Mapping[str, Any] | None) -> str:
    """`-0.853 to 0.846`; empty for what has no range of its own."""
    if row is None or row.get("low") is None:
        return ""
    return f"{row['low']:.3g} to {row['high']:.3g}"


def _settings(done: Sequence[Variant]) -> Iterator[Row]:
    """The keys of the configuration in which the jobs differ."""
    flat = [dict(_leaves(each.config)) for each in done]
    for key in dict.fromkeys(key for values in flat for key in values):
        cells = tuple(str(values.get(key, "–")) for values in flat)
        if len(set(cells)) > 1:
            yield Row(key, cells)


def _leaves(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping) and values and key not in ("target_device.schemes", "target_device.operations"):
        for name, value in values.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, "null" if values is None else values
