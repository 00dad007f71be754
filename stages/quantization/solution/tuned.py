"""What layer-wise tuning leaves: weights, biases and ranges of layers, as data that `build` takes for what they fit."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.common.errors import UserError
from stages.quantization.placement.plan import Plan, Quantizer, quantizer_from_json, quantizer_to_json
from stages.quantization.solution.ranges import Range, range_json
from stages.quantization.solution.solve import Solved

FORMAT = 1
FILE = "tuned.npz"


@dataclass(frozen=True)
class TunedLayer:
    """The tuned values of one layer, and the quantizers for which they were found.

    Attributes:
        name: The operation.
        quantizer: Of its weights.
        weights: In the shape of the weights' Constant, before quantization.
        weight_range: Of `quantizer`.
        bias: [C].
        input_quantizer: The one of its input, where its range was tuned.
        input_range: Of `input_quantizer`.
        aligned: The pairs of the plan's channel alignment that change this layer's weights.
    """

    name: str
    quantizer: Quantizer
    weights: NDArray[np.float32]
    weight_range: Range
    bias: NDArray[np.float64]
    input_quantizer: Quantizer | None = None
    input_range: Range | None = None
    aligned: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Tuned:
    """All tuned layers of a model."""

    layers: tuple[TunedLayer, ...] = ()

    def fitting(self, plan: Plan) -> Tuned:
        """What holds under a plan: layers whose weights it quantizes exactly as when they were tuned.

        A layer that the plan leaves float, or quantizes in another way, goes back to what it was. The range of its input
        counts by itself.
        """
        quantizers = {quantizer.name: quantizer for quantizer in plan.quantizers}
        fitting = []
        for layer in self.layers:
            if quantizers.get(layer.quantizer.name) != layer.quantizer or alignment_of(layer.name, plan) != layer.aligned:
                continue
            own = layer.input_quantizer
            if own is not None and quantizers.get(own.name) != own:
                layer = replace(layer, input_quantizer=None, input_range=None)
            fitting.append(layer)
        return Tuned(tuple(fitting))

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The tuned weights by the name of their quantizer."""
        return {layer.quantizer.name: layer.weights for layer in self.layers}

    def ranges(self) -> dict[str, Range]:
        """The tuned ranges by quantizer name."""
        return dict(self._ranges())

    def _ranges(self) -> Iterator[tuple[str, Range]]:
        for layer in self.layers:
            yield layer.quantizer.name, layer.weight_range
            if layer.input_quantizer is not None and layer.input_range is not None:
                yield layer.input_quantizer.name, layer.input_range

    def applied(self, solved: Solved) -> Solved:
        """The numbers of a quantized model with the tuned ones in their places."""
        return replace(
            solved,
            ranges=solved.ranges | self.ranges(),
            own_weights=solved.own_weights | self.weights(),
            biases=solved.biases | {layer.name: layer.bias for layer in self.layers},
        )


def alignment_of(name: str, plan: Plan) -> tuple[tuple[str, str], ...]:
    """The aligned pairs that an operation is in."""
    return tuple(pair for pair in plan.aligned if name in pair)


def with_tuned_ranges(quantizers: dict[str, Any], tuned: Tuned) -> dict[str, Any]:
    """The content of quantizers.json with the ranges that tuning found."""
    ranges = tuned.ranges()
    entries = [
        entry | range_json(ranges[entry["name"]], entry["doubled"]) if entry["name"] in ranges else entry
        for entry in quantizers["quantizers"]
    ]
    return quantizers | {"quantizers": entries}


def save_tuned(tuned: Tuned, folder: Path) -> None:
    """Write tuned.npz: an index as JSON, and the arrays that it numbers. The same bytes for the same values."""
    arrays: list[NDArray[Any]] = []

    def stored(value: NDArray[Any]) -> int:
        arrays.append(np.asarray(value, order="C"))  # a scalar stays one: `ascontiguousarray` would give it a dimension
        return len(arrays) - 1

    entries = []
    for layer in tuned.layers:
        entry: dict[str, Any] = {"name": layer.name, "quantizer": quantizer_to_json(layer.quantizer)}
        entry |= {"weights": stored(layer.weights), "bias": stored(layer.bias), "weight_range": [*map(stored, layer.weight_range)]}
        if layer.input_quantizer is not None and layer.input_range is not None:
            entry |= {"input_quantizer": quantizer_to_json(layer.input_quantizer), "input_range": [*map(stored, layer.input_range)]}
        entries.append(entry | {"aligned": [list(pair) for pair in layer.aligned]})
    index = np.frombuffer(json.dumps({"format": FORMAT, "layers": entries}).encode(), np.uint8)
    np.savez(folder / FILE, allow_pickle=False, index=index, **{f"{number}": value for number, value in enumerate(arrays)})


def load_tuned(folder: Path) -> Tuned | None:
    """Read what `save_tuned` wrote to a folder, e.g. build/correct_bias; None where nothing was tuned.

    Raises:
        UserError: it is damaged or of another version.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file) as archive:
            index = json.loads(archive["index"].tobytes())
            if index["format"] != FORMAT:
                raise ValueError(f"format {index['format']} instead of {FORMAT}")
            return Tuned(tuple(_layer(entry, archive) for entry in index["layers"]))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: tuned layers cannot be read ({what}); run `dvc repro --force correct_bias`") from None


def _layer(entry: dict[str, Any], archive: Any) -> TunedLayer:
    def borders(key: str) -> Range:
        return Range(*(archive[str(number)] for number in entry[key]))

    own = "input_quantizer" in entry
    return TunedLayer(
        name=entry["name"],
        quantizer=quantizer_from_json(entry["quantizer"]),
        weights=archive[str(entry["weights"])],
        weight_range=borders("weight_range"),
        bias=archive[str(entry["bias"])],
        input_quantizer=quantizer_from_json(entry["input_quantizer"]) if own else None,
        input_range=borders("input_range") if own else None,
        aligned=tuple((first, second) for first, second in entry["aligned"]),
    )
