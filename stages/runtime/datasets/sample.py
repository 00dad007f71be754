"""One sample, and what a data set must offer."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np


class Sample(NamedTuple):
    """One sample: arrays [1, ...] by input name, what the metrics compare with (None: unlabelled), and its name in messages."""

    inputs: dict[str, np.ndarray]
    target: Any = None
    label: str = ""


class Dataset(Protocol):
    """What a data set must offer. Optional are the methods

    `label(index) -> str`: what to call a sample in messages, e.g. its file;
    `files() -> Iterable[str | Path]`: files that it reads and that none of its arguments names, where no Python code opens them;
    `notes() -> Iterable[str]`: what a user should know of it, e.g. what was left out.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...
