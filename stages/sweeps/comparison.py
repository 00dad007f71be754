"""The comparison of a sweep's jobs as one page: metrics, accuracy against speed, and layers, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.common.units import drop, metric_value, model_names
from stages.report.page import environment
from stages.report.tradeoff import Picture, Point, picture
from stages.sweeps.adoption import Adoption
from stages.sweeps.results import INT8, SEARCHES, Variant, factor_range, warned

MOST_LAYERS = 1000  # rows of the table; the noisiest come first
MOST_HURTING = 3
LONGEST_LABEL = 28  # characters of a label in the picture; where the table has a longer one, the job's number stands for it
SHORT = {"accuracy_aware": "a", "tune": "t"}  # behind the job's number, where there is room for no more


@dataclass(frozen=True)
class Row:
    """A line of a table: one cell per job, and the places of the best ones, where it is clear that they are."""

    name: str
    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()
    note: str = ""


@dataclass(frozen=True)
class Layer:
    """An input of a layer: per job how it is quantized as far as that differs, and range and noise in small print.

    Attributes:
        name: Of the layer, and its port.
        note: Its type, and what all jobs have in common.
        cells: Per job what differs, and the small print.
        noise: Per job its signal-to-noise ratio in dB; None where it was not measured.
        effects: Per job the relative error of the model's outputs with its block alone quantized; None where it was not measured.
        block: What is quantized together with it, in the first job that knows.
        differs: Whether jobs treat it differently.
        place: In the model.
    """

    name: str
    note: str
    cells: tuple[tuple[str, str], ...]
    noise: tuple[float | None, ...]
    effects: tuple[float | None, ...]
    block: object
    differs: bool
    place: int

    @property
    def worst(self) -> float:
        """The lowest signal-to-noise ratio that a job has; large where none was measured."""
        return min((value for value in self.noise if value is not None), default=1e9)


@dataclass(frozen=True)
class Hurting:
    """A layer that hurts: what it does in the job to adopt, and in the others."""

    name: str
    note: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Everything on the page."""

    overrides: str
    subject: str
    names: tuple[str, ...]  # of the models, with the numbers of their jobs
    chosen: int | None  # the place of the one to adopt
    adoption: Adoption
    failed: tuple[tuple[str, str], ...]
    warnings: tuple[tuple[str, str], ...]
    results: tuple[Row, ...]
    finals: str
    picture: Picture | None
    hurting: tuple[Hurting, ...]
    hurting_of: str
    by_effect: bool  # whether that is its effect on the outputs, or the noise at its inputs
    layers: tuple[Layer, ...]
    more_layers: int
    settings: tuple[Row, ...]
    confidence: str
    parallel: bool


def page(overrides: Sequence[str], variants: Sequence[Variant], adopted: Adoption, finals: str, *, parallel: bool) -> str:
    """The page; at least one of the variants succeeded."""
    template = environment(Path(__file__).parent).get_template("comparison.html")
    return template.render(comparison=compared(overrides, variants, adopted, finals, parallel=parallel))


def compared(overrides: Sequence[str], variants: Sequence[Variant], adopted: Adoption, finals: str, *, parallel: bool) -> Comparison:
    """What the page says.

    Args:
        overrides: Of the command line.
        variants: The models of all jobs.
        adopted: Which one to adopt.
        finals: How the best were timed once more, or why not.
        parallel: Whether jobs ran at the same time.
    """
    done = [each for each in variants if each.error is None]
    layers = sorted(_layers(done), key=lambda layer: (layer.worst, layer.place))
    subjects = dict.fromkeys(f"{each.config['model']['name']} on {each.config['data']['name']}" for each in done)
    places = [place for place, each in enumerate(done) if adopted.best is not None and each.title == adopted.best.title]
    looked_at = places[0] if places else min(range(len(done)), key=lambda place: done[place].candidate.excess)
    return Comparison(
        overrides=" ".join(overrides),
        subject=", ".join(subjects),
        names=tuple(each.name for each in done),
        chosen=places[0] if places else None,
        adoption=adopted,
        failed=tuple((each.label, each.error) for each in variants if each.error is not None),
        warnings=tuple(warned(done)),
        results=tuple(_results(done)),
        finals=finals,
        picture=_picture(done),
        hurting=tuple(_hurting(layers, looked_at)),
        hurting_of=done[looked_at].title,
        by_effect=any(layer.effects[looked_at] for layer in layers),
        layers=tuple(layers[:MOST_LAYERS]),
        more_layers=max(0, len(layers) - MOST_LAYERS),
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
        note = [] if higher else ["less is better"]
        fp32, int8 = (tuple(metric_value(metric, metric[key]) if metric else "–" for metric in metrics) for key in ("fp32", "int8"))
        if len(set(fp32)) == 1:
            note.append(f"FP32: {fp32[0]}")
        else:
            yield Row(f"{name}, FP32", fp32, note=", ".join(note))
        clear = _clear([metric and _interval(metric) for metric in metrics], higher=False)
        yield Row(f"{name}, INT8", int8, clear, ", ".join(note))
        drops = tuple(drop(metric, metric) if metric else "–" for metric in metrics)
        yield Row(f"drop of {name}", drops, note="FP32 minus INT8" if higher else "INT8 minus FP32")
    if any(each.speed for each in done):
        yield _faster([each.speed.get("speed_up", {}).get("fp32") for each in done], "faster than FP32 in f32")
        if all(each.evaluation["precisions"]["default"] != "f32" for each in done):
            precisions = " or ".join(dict.fromkeys(each.evaluation["precisions"]["default"] for each in done))
            ratios = [each.speed.get("speed_up", {}).get("default") for each in done]
            yield _faster(ratios, f"faster than FP32 in {precisions}", "this device’s default")
        if any(each.final is not None for each in done):
            default = done[0].evaluation["precisions"]["default"]
            yield _faster(
                [each.final for each in done], f"faster than FP32 in {default}, side by side", "the best of all jobs in the same rounds"
            )
        rates = [_rate(each) for each in done]
        cells = tuple("–" if rate is None else f"{rate:.2f}x" for rate in rates)
        yield Row("throughput, times FP32’s", cells, note="with as many inferences at once as the device likes")
    sizes = [each.evaluation["size_bytes"]["fp32"] / each.evaluation["size_bytes"][INT8] for each in done]
    yield Row("times smaller", tuple(f"{size:.2f}x" for size in sizes), _best([round(size, 2) for size in sizes]))
    yield Row("operations left in floating point", tuple(str(each.left_float) for each in done))


def _faster(ratios: Sequence[Mapping[str, float] | None], name: str, note: str = "") -> Row:
    cells = tuple("–" if ratio is None else factor_range(ratio) for ratio in ratios)
    best = _clear([None if ratio is None else (ratio["low"], ratio["high"]) for ratio in ratios], higher=True)
    return Row(name, cells, best, note)


def _rate(each: Variant) -> float | None:
    """How many times more inferences per second than FP32 in the default precision; None where it was not measured of this model."""
    rates = each.speed.get("throughput", {})
    return rates[INT8] / rates["default"] if "default" in rates else None


def _interval(metric: Mapping[str, Any]) -> tuple[float, float]:
    """In which a metric's drop lies."""
    low, high = metric["drop_low"], metric["drop_high"]
    return (metric["drop"], metric["drop"]) if low is None else (low, high)


def _clear(ranges: Sequence[tuple[float, float] | None], *, higher: bool) -> frozenset[int]:
    """The place of the best one, if no other one's range reaches its own; else none."""
    known = [(place, found if higher else (-found[1], -found[0])) for place, found in enumerate(ranges) if found is not None]
    if len(known) < 2:
        return frozenset()
    place, best = max(known, key=lambda entry: entry[1])
    return frozenset() if any(other[1] >= best[0] for index, other in known if index != place) else frozenset({place})


def _best(values: Sequence[float]) -> frozenset[int]:
    """The places of the largest value; none where all are the same."""
    if len(set(values)) < 2:
        return frozenset()
    return frozenset(place for place, value in enumerate(values) if value == max(values))


def _short(each: Variant) -> str:
    """What a point of the picture is called: `preset=mixed`, or `job 3, tuned`."""
    if len(each.label) <= LONGEST_LABEL:
        return each.label
    return f"job {each.number}" + (f", {SEARCHES[each.kind]}" if each.kind in SEARCHES else "")


def _number(each: Variant) -> str:
    return f"{each.number}{SHORT.get(each.kind, '')}"


def _picture(done: Sequence[Variant]) -> Picture | None:
    """The primary metric against the time of an inference, in percent of FP32's in f32, which each job has measured beside its own."""
    done = [each for each in done if each.speed]
    if not done or len({each.primary for each in done}) > 1:
        return None
    name = done[0].primary
    metric = done[0].evaluation["metrics"][name]
    scale, sign = (100.0 if metric["share"] else 1.0), (1.0 if metric["higher_is_better"] else -1.0)
    points = [Point("FP32 (f32)", "fp32", 100.0, scale * metric["fp32"], metric_value(metric, metric["fp32"]), short="f32")]
    if (default := model_names(done[0].evaluation["precisions"]).get("default")) is not None:
        shares = sorted(100 * each.speed["speed_up"]["default"]["median"] / each.speed["speed_up"]["fp32"]["median"] for each in done)
        text = metric_value(metric, metric["default"])
        short = done[0].evaluation["precisions"]["default"]
        points.append(Point(default, "default", shares[len(shares) // 2], scale * metric["default"], text, short=short))
    for each in done:
        metric, ratio = each.evaluation["metrics"][name], each.speed["speed_up"]["fp32"]
        interval = None
        if metric["drop_low"] is not None:
            low, high = (scale * (metric["fp32"] - sign * metric[side]) for side in ("drop_high", "drop_low"))
            interval = (low, high)
        times = (100 / ratio["high"], 100 / ratio["low"])
        text = f"{metric_value(metric, metric['int8'])}, {ratio['median']:.2f}x"
        points.append(Point(_short(each), each.kind, 100 / ratio["median"], scale * metric["int8"], text, times, interval, _number(each)))
    return picture(points, [], name, "%" if metric["share"] else "", higher_is_better=metric["higher_is_better"])


# ------------------------------------------------------------------------------------------------ layers, settings


def _layers(done: Sequence[Variant]) -> Iterator[Layer]:
    """Every input of every layer that one of the jobs quantizes, in the model's order."""
    tables = [{(row["layer"], row["kind"] == "weights"): row for row in each.layers} for each in done]
    for place, key in enumerate(dict.fromkeys(key for rows in tables for key in rows)):
        rows = [rows.get(key) for rows in tables]
        if all(row is None or row["kind"] == "float" for row in rows) and len({row and row["float_reason"] for row in rows}) == 1:
            continue  # float everywhere, for the same reason
        kinds = [row["type"] for row in rows if row and row.get("type")]
        schemes = [_scheme(row) for row in rows]
        known = [scheme for scheme, row in zip(schemes, rows, strict=True) if row is not None]
        common = [part for part in known[0] if all(part in scheme for scheme in known)]
        cells = tuple(
            ("–" if row is None else ", ".join(part for part in scheme if part not in common), _small_print(row))
            for scheme, row in zip(schemes, rows, strict=True)
        )
        noise = tuple(None if row is None else row.get("sqnr_db") for row in rows)
        differs = len(set(map(tuple, schemes))) > 1 or len({_range(row) for row in rows}) > 1
        effects = tuple(None if row is None else row.get("effect_on") for row in rows)
        block = next((row["block"] for row in rows if row and row.get("block") is not None), key)
        yield Layer(key[0], ", ".join([*kinds[:1], *common]), cells, noise, effects, block, differs, place)


def _scheme(row: Mapping[str, Any] | None) -> list[str]:
    """How an input is quantized, part by part."""
    if row is None:
        return []
    if row["kind"] == "float":
        return [f"float: {row['float_reason']}"]
    granularity = {"pertensor": "per tensor", "perchannel": "per channel"}.get(str(row.get("granularity")), "")
    parts = [row["kind"], f"{row['bits']} bits" if row.get("bits") else "", row.get("mode") or "", granularity]
    return [part for part in parts if part]


def _small_print(row: Mapping[str, Any] | None) -> str:
    noise = f"{row['sqnr_db']:.1f} dB" if row and row.get("sqnr_db") is not None else ""
    return " · ".join(part for part in (_range(row), noise) if part)


def _hurting(layers: Sequence[Layer], place: int) -> Iterator[Hurting]:
    """What hurts one of the jobs most, beside what it does in the others: by the effect on the outputs, else by noise."""
    if any(layer.effects[place] for layer in layers):
        blocks = {layer.block: layer for layer in reversed(layers) if layer.effects[place] is not None}
        for layer in sorted(blocks.values(), key=lambda layer: -(layer.effects[place] or 0.0))[:MOST_HURTING]:
            yield Hurting(layer.name, layer.note, tuple("–" if value is None else f"{100 * value:.2g} %" for value in layer.effects))
        return
    noisy = sorted((layer for layer in layers if layer.noise[place] is not None), key=lambda layer: layer.noise[place] or 0.0)
    for layer in noisy[:MOST_HURTING]:
        cells = tuple("–" if value is None else f"{100 * 10 ** (-value / 20):.2g} % ({value:.1f} dB)" for value in layer.noise)
        yield Hurting(layer.name, layer.note, cells)


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
