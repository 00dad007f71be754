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
    """What a data set must offer; `label(index) -> str` is optional."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...
