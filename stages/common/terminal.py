"""What a program says where it is run: in any encoding, and in one line where it is interrupted before it has begun."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import TracebackType


def set_up() -> None:
    """Let no letter that the terminal lacks end the program, and no traceback tell of Ctrl-C while libraries are imported."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as the standard error does
    sys.excepthook = _say


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print(f"{Path(sys.argv[0]).stem}: interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
