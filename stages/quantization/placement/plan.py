"""The configuration of a quantized model: which tensors are quantized, how, and what stays floating point and why.

A `Plan` is small, immutable and serialisable. Placement makes one from a preset; a search makes variants of it;
`build` turns one into a model. `quantizers.json` is a plan with the computed ranges beside it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from stages.configuration.target_device import Scheme


class TensorName(NamedTuple):
    """An output of an operation, by name."""

    name: str
    port: int


class Place(NamedTuple):
    """An input of an operation, by name."""

    name: str
    type: str
    port: int


@dataclass(frozen=True)
class Border:
    """How one border of a range is estimated."""

    type: str
    outlier_prob: float | None = None
    clipping_value: float | None = None
    aggregator: str | None = None
    granularity: str | None = None  # None: the quantizer's own


@dataclass(frozen=True)
class Estimator:
    """How a range is estimated."""

    min: Border
    max: Border


@dataclass(frozen=True)
class Quantizer:
    """One FakeQuantize: the tensor it quantizes, for whom, and how."""

    name: str
    kind: str  # weights or activations
    source: TensorName
    source_type: str
    consumers: tuple[Place, ...]  # inputs that read the quantized tensor directly
    layers: tuple[Place, ...]  # inputs of quantized operations that it serves, through operations that pass data on
    scheme: Scheme
    estimator: Estimator
    unified_group: int | None = None
    channel_axis: int | None = None  # axis of the source tensor that has a range per index; None: one range
    doubled: bool = False  # saturation fix: half the levels stay unused
    restriction: str | None = None  # why it is not what the preset would have chosen
    choice: str | None = field(default=None, compare=False)  # what preset auto chose, and why


@dataclass(frozen=True)
class Float:
    """An operation input (or a whole operation, port None) that stays in floating point."""

    name: str
    type: str
    port: int | None
    reason: str


@dataclass(frozen=True)
class NotAligned:
    """Two neighbouring weighted operations between which channels are not aligned."""

    first: str
    second: str
    reason: str


class Smoothed(NamedTuple):
    """A tensor whose features are scaled into the weights of what reads it."""

    tensor: TensorName
    readers: tuple[str, ...]


class NotSmoothed(NamedTuple):
    """A tensor that layers with weights read, whose features stay as they are."""

    tensor: TensorName
    reason: str


@dataclass(frozen=True)
class Plan:
    """All quantizers of a model and everything that stays in floating point."""

    quantizers: tuple[Quantizer, ...]
    floats: tuple[Float, ...]
    aligned: tuple[tuple[str, str], ...] = field(default=())  # pairs of operations between which channels are aligned
    not_aligned: tuple[NotAligned, ...] = field(default=())  # pairs that would be but for a reason
    smoothed: tuple[Smoothed, ...] = field(default=())  # tensors whose features are smoothed where that helps
    not_smoothed: tuple[NotSmoothed, ...] = field(default=())  # those that would be but for a reason
    stat_batch_size: int = 1  # samples in a row whose statistics of activations count as one batch's

    @property
    def rewrites(self) -> bool:
        """Whether the floating-point model is rewritten before it is quantized (`noise.aligned_model`)."""
        return bool(self.aligned or self.smoothed)


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain data."""
    return {
        "quantizers": [quantizer_to_json(quantizer) for quantizer in plan.quantizers],
        "float": [asdict(entry) for entry in plan.floats],
        "aligned": [list(pair) for pair in plan.aligned],
        "not_aligned": [asdict(pair) for pair in plan.not_aligned],
        "smoothed": [{"tensor": list(entry.tensor), "readers": list(entry.readers)} for entry in plan.smoothed],
        "not_smoothed": [{"tensor": list(entry.tensor), "reason": entry.reason} for entry in plan.not_smoothed],
        "stat_batch_size": plan.stat_batch_size,
    }


def plan_from_json(data: dict[str, Any]) -> Plan:
    """The plan that `plan_to_json` wrote; computed ranges beside it are left out."""
    return Plan(
        tuple(quantizer_from_json(entry) for entry in data["quantizers"]),
        tuple(Float(**entry) for entry in data["float"]),
        tuple((first, second) for first, second in data["aligned"]),
        tuple(NotAligned(**pair) for pair in data["not_aligned"]),
        tuple(Smoothed(TensorName(*entry["tensor"]), tuple(entry["readers"])) for entry in data["smoothed"]),
        tuple(NotSmoothed(TensorName(*entry["tensor"]), entry["reason"]) for entry in data["not_smoothed"]),
        data["stat_batch_size"],
    )


def quantizer_to_json(quantizer: Quantizer) -> dict[str, Any]:
    """One quantizer as plain data."""

    def border(entry: Border) -> dict[str, Any]:
        return {key: value for key, value in asdict(entry).items() if value is not None}

    return {
        "name": quantizer.name,
        "kind": quantizer.kind,
        "source": {"name": quantizer.source.name, "port": quantizer.source.port, "type": quantizer.source_type},
        "consumers": [place._asdict() for place in quantizer.consumers],
        "layers": [place._asdict() for place in quantizer.layers],
        **asdict(quantizer.scheme),
        "estimator": {"min": border(quantizer.estimator.min), "max": border(quantizer.estimator.max)},
        "unified_group": quantizer.unified_group,
        "channel_axis": quantizer.channel_axis,
        "doubled": quantizer.doubled,
        "restriction": quantizer.restriction,
        "choice": quantizer.choice,
    }


def quantizer_from_json(data: dict[str, Any]) -> Quantizer:
    """The quantizer that `quantizer_to_json` wrote."""
    return Quantizer(
        name=data["name"],
        kind=data["kind"],
        source=TensorName(data["source"]["name"], data["source"]["port"]),
        source_type=data["source"]["type"],
        consumers=tuple(Place(**place) for place in data["consumers"]),
        layers=tuple(Place(**place) for place in data["layers"]),
        scheme=Scheme(**{key: data[key] for key in ("bits", "mode", "granularity", "level_low", "level_high")}),
        estimator=Estimator(Border(**data["estimator"]["min"]), Border(**data["estimator"]["max"])),
        unified_group=data["unified_group"],
        channel_axis=data["channel_axis"],
        doubled=data["doubled"],
        restriction=data["restriction"],
        choice=data.get("choice"),
    )
