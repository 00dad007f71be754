"""One sample, and what a data set must offer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np


class Sample(NamedTuple):
    """One sample: arrays [1, ...] by input name, what the metrics compare with (None: unlabelled), and its name in messages."""

    inputs: dict[str, np.ndarray]
    target: Any = None
    label: str = ""
    part: Part | None = None  # of a stream, which part it is

    def with_input(self, name: str, value: np.ndarray) -> Sample:
        """The same with one more input, and so all that it follows."""
        part = self.part and replace(self.part, more={**self.part.more, name: value})
        return self._replace(inputs={**self.inputs, name: value}, part=part)


@dataclass(frozen=True)
class Part:
    """A place in a stream: in a row of samples of which each begins with the state that the one before it leaves.

    Attributes:
        samples: All samples of the set.
        first: Where among these the stream begins.
        position: Where the part is.
        more: Inputs that all parts have besides.
    """

    samples: Sequence[Sample]
    first: int
    position: int
    more: Mapping[str, np.ndarray] = field(default_factory=dict)

    def since(self, done: Part | None) -> tuple[bool, Iterator[Sample]]:
        """What is to be run before this part where `done` was run last: whether with the initial state, and the samples."""
        goes_on = done is not None and done.samples is self.samples and self.first <= done.position < self.position
        start = done.position + 1 if done is not None and goes_on else self.first
        return not goes_on, (self._at(position) for position in range(start, self.position))

    def _at(self, position: int) -> Sample:
        sample = self.samples[position]
        return sample._replace(inputs={**sample.inputs, **self.more})


class Dataset(Protocol):
    """What a data set must offer. Optional are the methods

    `label(index) -> str`: what to call a sample in messages, e.g. its file;
    `files() -> Iterable[str | Path]`: files that it reads and that none of its arguments names, where no Python code opens them;
    `notes() -> Iterable[str]`: what a user should know of it, e.g. what was left out;
    `stream(index) -> str`: which stream a sample is a part of, where samples are (`data.streams`); without it all are of one.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...
