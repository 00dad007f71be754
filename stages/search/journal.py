"""The journal: every evaluation's outcome, written down as it is found, so that nothing is ever evaluated twice.

A problem's journals share a folder. Each search writes one of its own and reads all of them. A line that a killed process left
half-written does not count.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from stages.common import artifacts
from stages.common.errors import UserError
from stages.measurement.latency import Spread
from stages.search.evaluator import Outcome

FOLDER = artifacts.BUILD / ".journal"  # no artifact: DVC knows nothing of it, and it may be removed between searches


class Journal:
    """The outcomes that are known of a problem; a context manager that holds one search's journal for writing."""

    def __init__(self, problem_key: str, name: str, folder: Path = FOLDER) -> None:
        """
        Args:
            problem_key: `Problem.key`.
            name: Of the search: its strategy and a key of its settings.
            folder: Where journals are.
        """
        self.path = folder / problem_key / f"{name}.jsonl"
        self.known: dict[str, Outcome] = {}  # by task key
        self.whole: dict[str, Outcome] = {}  # by candidate key: outcomes on all samples, in order
        self._file: BinaryIO | None = None

    def __enter__(self) -> Journal:
        """Take the journal.

        Raises:
            UserError: another process has it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(f"the same search is already running: another process writes {self.path}") from None
        _drop_torn_line(self._file)
        for path in sorted(self.path.parent.glob("*.jsonl")):
            for outcome, everything in _read(path):
                self._add(outcome, everything)
        return self

    def __exit__(self, *error: object) -> None:
        assert self._file is not None
        self._file.close()

    def append(self, outcome: Outcome, everything: bool) -> None:
        """Write an outcome down, and onto the disk.

        Args:
            outcome: What was found.
            everything: Whether it covers all validation samples in their order.
        """
        assert self._file is not None
        self._file.write((json.dumps(_to_json(outcome) | {"everything": everything}) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._add(outcome, everything)

    def _add(self, outcome: Outcome, everything: bool) -> None:
        self.known.setdefault(outcome.key, outcome)
        if everything and outcome.complete:
            self.whole.setdefault(outcome.candidate, outcome)


def _drop_torn_line(file: BinaryIO) -> None:
    file.seek(0)
    content = file.read()
    file.truncate(content.rfind(b"\n") + 1)


def _read(path: Path) -> Iterator[tuple[Outcome, bool]]:
    for line in path.read_bytes().splitlines():
        try:
            data = json.loads(line)
            yield _from_json(data), data["everything"]
        except (ValueError, KeyError, TypeError, zlib.error):
            continue  # another search is just writing this line; or it is damaged, and costs an evaluation


def _to_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "key": outcome.key,
        "candidate": outcome.candidate,
        "complete": outcome.complete,
        "seconds": outcome.seconds,
        "speed_up": outcome.speed_up,
        "latency_ms": outcome.latency_ms,
        "rows": {name: _packed(rows) for name, rows in outcome.rows.items()},
    }


def _from_json(data: dict[str, Any]) -> Outcome:
    speed_up, latency_ms = (None if data[name] is None else Spread(*data[name]) for name in ("speed_up", "latency_ms"))
    rows = {name: _unpacked(value) for name, value in data["rows"].items()}
    return Outcome(data["key"], data["candidate"], rows, data["complete"], data["seconds"], speed_up, latency_ms)


def _packed(rows: NDArray[np.float64]) -> dict[str, Any]:
    content = zlib.compress(np.ascontiguousarray(rows, "<f8").tobytes(), 6)
    return {"shape": rows.shape, "float64": base64.b64encode(content).decode()}


def _unpacked(data: dict[str, Any]) -> NDArray[np.float64]:
    return np.frombuffer(zlib.decompress(base64.b64decode(data["float64"])), "<f8").reshape(data["shape"])
