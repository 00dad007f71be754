"""Samples bound to a model: chosen, in order, each checked against the model's inputs when it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from stages.common.errors import UserError
from stages.common.user_code import offered, user_code
from stages.runtime.datasets.identities import Identity, identity
from stages.runtime.datasets.inputs import ModelInput
from stages.runtime.datasets.sample import Dataset, Part, Sample


class Samples(Sequence[Sample]):
    """Chosen samples of a data set in a fixed order, each checked against the model's inputs when it is read.

    Reading gives `Sample`s whose inputs are complete, in the model's order, contiguous and of the model's types.

    Raises:
        UserError: (on reading) naming sample and input: a wrong name, shape or type, NaN or infinity, or content that differs
            from `expected`.
    """

    def __init__(
        self,
        dataset: Dataset,
        inputs: Sequence[ModelInput],
        indices: Sequence[int] | None = None,
        name: str = "data",
        expected: Sequence[Identity] | None = None,
        streams: Sequence[str] | None = None,
    ) -> None:
        """
        Args:
            indices: which samples of the data set, in which order; by default all.
            name: what to call the set in messages, e.g. "calibration".
            expected: identity of each chosen sample as it was recorded; checked on reading.
            streams: of which stream each chosen sample is a part; None: each stands alone.
        """
        self.dataset = dataset
        self.inputs = list(inputs)
        self.indices = list(range(len(dataset))) if indices is None else list(indices)
        self.name = name
        self.expected = expected
        self.streams = streams
        self._firsts = _firsts(self.indices, streams) if streams is not None else None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            expected = None if self.expected is None else self.expected[position]
            streams = None if self.streams is None else self.streams[position]
            return Samples(self.dataset, self.inputs, self.indices[position], self.name, expected, streams)
        label = self.label(position)
        with user_code(label):
            item = self.dataset[self.indices[position]]
        sample = checked(item, self.inputs, label)
        if self._firsts is not None:
            sample = sample._replace(part=Part(self, self._firsts[position], position))
        if self.expected is not None and identity(sample) != self.expected[position]:
            raise UserError(f"{sample.label} has changed since the stage `prepare`: run `dvc repro --force prepare`, then `dvc repro`")
        return sample

    def __iter__(self) -> Iterator[Sample]:
        return (self[position] for position in range(len(self)))

    def targets(self) -> list[str | None]:
        """The hashes of the targets as they were recorded, without reading a sample; None for unlabelled ones, empty where unknown."""
        return [identity.target for identity in self.expected or ()]

    def label(self, position: int) -> str:
        """What to call a sample in messages."""
        index = self.indices[position]
        own = self.own_label(position)
        return f"{self.name} sample {index}" + (f" ({own})" if own else "")

    def own_label(self, position: int) -> str | None:
        """What the data set itself calls a sample, e.g. its file name; None where its `label` is no such method."""
        index = self.indices[position]
        label = offered(self.dataset, "label", index)
        if label is None:
            return None
        with user_code(f"{self.name} sample {index}: label({index}) of {type(self.dataset).__name__}"):
            return str(label(index))


def _firsts(indices: Sequence[int], streams: Sequence[str]) -> list[int]:
    """By position, where its stream begins: at another one, and where the data set has samples between that were not chosen."""
    firsts: list[int] = []
    for position, (index, stream) in enumerate(zip(indices, streams, strict=True)):
        goes_on = position > 0 and stream == streams[position - 1] and index == indices[position - 1] + 1
        firsts.append(firsts[-1] if goes_on else position)
    return firsts


def checked(item: Any, inputs: Sequence[ModelInput], label: str) -> Sample:
    """One item of a data set as a sample of the model.

    Raises:
        UserError: names `label` and the input: what is wrong with it and what the model expects.
    """
    given, target = _split(item, inputs, label)
    # Of the data sets here only arrays have names of their own.
    hint = f"; `inputs` beside `path` maps them, e.g. inputs: {{{inputs[0].name}: {next(iter(given))}}}" if isinstance(item, Sample) else ""
    by_name = _by_name(given, inputs, label, hint)
    arrays = {entry.name: _checked_array(by_name[entry.name], entry, label) for entry in inputs}
    return Sample(arrays, _plain(target), label)


def _split(item: Any, inputs: Sequence[ModelInput], label: str) -> tuple[Mapping[str, Any], Any]:
    if isinstance(item, Sample):
        given, target = item.inputs, item.target
    elif isinstance(item, tuple) or _is_pair(item, inputs):
        if len(item) != 2:
            raise UserError(f"{label} is a tuple of {len(item)}, but must be (inputs, target)")
        given, target = item
    else:
        given, target = item, None
    return (given if isinstance(given, Mapping) else {"": given}), target


def _is_pair(item: Any, inputs: Sequence[ModelInput]) -> bool:
    """Whether a list is (inputs, target), as batches of PyTorch are, and not an array written as a list."""
    if not isinstance(item, list) or len(item) != 2 or not (isinstance(item[0], Mapping) or hasattr(item[0], "__array__")):
        return False
    try:
        shape = np.shape(item)
    except (TypeError, ValueError):  # of different lengths
        return True
    return not (len(inputs) == 1 and inputs[0].shape is not None and _fits(shape, inputs[0].shape))


def _plain(target: Any) -> Any:
    """A target with arrays of other libraries, e.g. PyTorch's, as NumPy's."""
    if isinstance(target, Mapping):
        return {key: _plain(value) for key, value in target.items()}
    if isinstance(target, (list, tuple)) and not hasattr(target, "_fields"):
        return type(target)(_plain(value) for value in target)
    return np.asarray(target) if hasattr(target, "__array__") and not isinstance(target, (np.ndarray, np.generic)) else target


def _by_name(given: Mapping[str, Any], inputs: Sequence[ModelInput], label: str, hint: str) -> dict[str, Any]:
    if len(inputs) == 1 and set(given) == {""}:
        return {inputs[0].name: given[""]}
    expected = ", ".join(entry.name for entry in inputs)
    if set(given) == {""}:
        raise UserError(f"{label} is a single array, but the model has {len(inputs)} inputs: {expected}")
    found = {entry.name: [name for name in given if name in entry.aliases] for entry in inputs}
    known = {name for names in found.values() for name in names}
    if set(given) - known:
        unknown = ", ".join(repr(name) for name in given if name not in known)
        raise UserError(f"{label} has an input {unknown}, but the model's inputs are: {expected}{hint}")
    wrong = [name for name, names in found.items() if len(names) != 1]
    if wrong:
        raise UserError(f"{label} has no array (or two) for input {', '.join(wrong)}; the model's inputs are: {expected}{hint}")
    return {name: given[names[0]] for name, names in found.items()}


def _checked_array(value: Any, expected: ModelInput, label: str) -> np.ndarray:
    with user_code(f"{label}: input {expected.name} is no array"):
        array = np.asarray(value)
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == np.bool_) or np.issubdtype(array.dtype, np.complexfloating):
        raise UserError(f"{label}: input {expected.name} is of type {array.dtype}, not numbers")
    if expected.shape is not None and not _fits(array.shape, expected.shape):
        wanted = str([size if size >= 0 else "?" for size in expected.shape]).replace("'", "")
        hint = "; samples carry the batch dimension: give x[None] instead of x" if _fits((1, *array.shape), expected.shape) else ""
        raise UserError(f"{label}: input {expected.name} has shape {list(array.shape)}, but the model expects {wanted}{hint}")
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        place = [int(index) for index in np.argwhere(~np.isfinite(array))[0]]
        raise UserError(f"{label}: input {expected.name} has the value {array[tuple(place)]} at {place}")
    with np.errstate(over="ignore", invalid="ignore"):
        converted = np.ascontiguousarray(array, dtype=expected.dtype).reshape(array.shape)
    if converted.dtype != array.dtype and not _same_numbers(array, converted):
        raise UserError(f"{label}: input {expected.name} is of type {array.dtype} with values that {expected.dtype} cannot hold")
    return converted


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return len(shape) == len(expected) and all(want in (-1, have) for want, have in zip(expected, shape, strict=True))


def _same_numbers(array: np.ndarray, converted: np.ndarray) -> bool:
    """Whether a conversion kept the numbers: up to rounding between floating-point types, exactly for integers."""
    if np.issubdtype(converted.dtype, np.floating):
        return bool(np.isfinite(converted).all())
    return bool(np.array_equal(converted.astype(array.dtype), array))
