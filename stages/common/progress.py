"""Progress of long work: a bar in a terminal, plain lines in a log, nothing for what is done within two seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Self, TextIO, TypeVar

from tqdm import tqdm

from stages.common.units import plural

T = TypeVar("T")

QUIET_SECONDS = 2.0


class Progress:
    """Counts work that is done elsewhere, e.g. in the callbacks of asynchronous inference.

    A context manager whose value is called with the number of items done since the last call:

        with Progress("collect_statistics", total=300) as advance:
            infer(..., progress=advance)
    """

    def __init__(self, label: str, total: int | None = None, unit: str = "samples", stream: TextIO | None = None) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        self.done = 0
        self._stream = stream or sys.stderr
        self._started = time.monotonic()
        self._next_line = self._started + QUIET_SECONDS
        self._bar: tqdm | None = None
        if self._stream.isatty():
            self._bar = tqdm(
                desc=label, total=total, unit=f" {unit}", file=self._stream, delay=QUIET_SECONDS, leave=False, dynamic_ncols=True
            )

    def __call__(self, count: int = 1) -> None:
        """Report `count` more items as done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() >= self._next_line:
            self._write_line()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def _write_line(self) -> None:
        now = time.monotonic()
        elapsed = now - self._started
        # Long work reports less and less often, so that a log stays readable.
        self._next_line = now + max(QUIET_SECONDS, elapsed / 10)
        if self.total is None:
            text = f"{self.label}: {plural(self.done, self.unit.removesuffix('s'))}, {elapsed:.0f} s"
        else:
            left = elapsed * (self.total - self.done) / max(self.done, 1)
            text = f"{self.label}: {self.done}/{self.total} {self.unit}, {left:.0f} s left"
        print(text, file=self._stream, flush=True)


class Steps:
    """Says what is being done as soon as everything together has taken more than two seconds, for work that cannot be counted.

    A context manager whose value is called at the beginning of each step:

        with Steps("prepare") as begin:
            begin("reading the model")
    """

    def __init__(self, label: str, stream: TextIO | None = None) -> None:
        self.label = label
        self._stream = stream or sys.stderr
        self._end_of_quiet = time.monotonic() + QUIET_SECONDS
        self._timer: threading.Timer | None = None

    def __call__(self, step: str) -> None:
        """Begin a step; the one before has ended."""
        self._cancel()
        left = self._end_of_quiet - time.monotonic()
        if left <= 0:
            self._say(step)
        else:
            self._timer = threading.Timer(left, self._say, [step])
            self._timer.daemon = True
            self._timer.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._cancel()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _say(self, step: str) -> None:
        print(f"{self.label}: {step}", file=self._stream, flush=True)


def progress(items: Iterable[T], label: str, total: int | None = None, unit: str = "samples") -> Iterator[T]:
    """Iterate over `items` and show how far the loop is."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(label, total, unit) as advance:
        for item in items:
            yield item
            advance()
