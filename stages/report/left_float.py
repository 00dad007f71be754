"""What was left as it was, grouped by the reason: operations in floating point, and biases that were not corrected."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

WEIGHTED = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul")
NOT_FLOAT = ("computes shapes", "works on integers", "input is computed from shapes")  # never were candidates
MOST_NAMES = 2
MOST_TYPES = 4


class LeftOperation(NamedTuple):
    """An operation that was left as it is."""

    name: str
    type: str
    reason: str
    share: float  # of INT8's run time


@dataclass(frozen=True)
class Group:
    """The operations that were left for one reason."""

    reason: str
    entries: Sequence[LeftOperation]

    @property
    def share(self) -> float:
        """Of INT8's run time."""
        return sum(entry.share for entry in self.entries)

    @property
    def count(self) -> int:
        """Operations; one that is left at several inputs counts once."""
        return len({entry.name for entry in self.entries})

    @property
    def importance(self) -> tuple[float, int, int]:
        """What costs time comes first, then layers with weights, then the many."""
        return self.share, sum(entry.type in WEIGHTED for entry in self.entries), len(self.entries)

    @property
    def free(self) -> bool:
        """Whether nothing in it takes run time of its own or has weights: it is fused into quantized layers."""
        return self.importance[:2] == (0.0, 0)


def left_float(rows: Iterable[Mapping[str, Any]]) -> list[LeftOperation]:
    """The operations that could have been quantized and were not, from the rows of layers.json."""
    return [
        LeftOperation(row["layer"].removesuffix(f":{row['port']}"), row["type"], general(row["float_reason"]), row["run_time_share"] or 0.0)
        for row in rows
        if row["kind"] == "float" and row["float_reason"] not in NOT_FLOAT
    ]


def left_biases(corrections: Mapping[str, Any]) -> list[LeftOperation]:
    """The layers whose bias was not corrected, from corrections.json."""
    return [LeftOperation(entry["name"], entry["type"], general(entry["reason"]), 0.0) for entry in corrections["left"]]


def by_reason(left: Iterable[LeftOperation]) -> list[Group]:
    """One group per reason, the most important first."""
    groups: dict[str, list[LeftOperation]] = defaultdict(list)
    for entry in left:
        groups[entry.reason].append(entry)
    return sorted((Group(reason, entries) for reason, entries in groups.items()), key=lambda group: group.importance, reverse=True)


def which(entries: Sequence[LeftOperation]) -> str:
    """Few operations by their names, many by their types: the costly ones first."""
    names = list(dict.fromkeys(entry.name for entry in entries))
    if len(names) <= MOST_NAMES:
        return ", ".join(names)
    types: dict[str, list[LeftOperation]] = defaultdict(list)
    for entry in entries:
        types[entry.type].append(entry)
    ordered = sorted(types, key=lambda kind: Group(kind, types[kind]).importance, reverse=True)
    told = [f"{len(types[kind])} {kind}" for kind in ordered[:MOST_TYPES]]
    return ", ".join([*told, "..."] if len(types) > MOST_TYPES else told)


def general(reason: str) -> str:
    """The reason without what differs from layer to layer: a device's missing types form one group, factors another."""
    reason = re.sub(r"(has no quantized) \S+$", r"\1 form of it", reason)
    return re.sub(r"\d\S*(?= times)", "…", reason)
