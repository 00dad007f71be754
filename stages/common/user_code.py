"""Code that the user brings: what goes wrong in it is said with what it was doing, and where in it."""

from __future__ import annotations

import inspect
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from stages.common.errors import UserError

T = TypeVar("T")

PROJECT = Path(__file__).parents[1]  # stages/
LONGEST_REASON = 300


class UserCodeError(UserError):
    """An exception out of a user's code, which is its `__cause__`; where that is known its traceback is shown above the line."""


@contextmanager
def user_code(doing: str) -> Iterator[None]:
    """Turn what a user's code raises into an error of one line that begins with what it was `doing`.

    That includes `sys.exit`, which would otherwise end a stage as if it were done.

    Raises:
        UserCodeError: for anything but an error that is one line already, an interruption, and a lack of memory.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise UserCodeError(f"{doing}: {_reason(error)}{_place(error)}") from error


def offered(owner: object, name: str, *arguments: object) -> Callable[..., Any] | None:
    """The method of a user's object that may be there or not; None where what has this name is something else."""
    method = getattr(owner, name, None)
    if not callable(method):
        return None
    try:
        inspect.signature(method).bind(*arguments)
    except TypeError:
        return None
    except ValueError:  # a function in C does not tell
        pass
    return method


def print_traceback(error: BaseException) -> None:
    """Show the way to an exception of a user's code, as Python would, from where that begins; all of it where the fault is ours."""
    cause = error.__cause__
    if not isinstance(error, UserCodeError) or cause is None or isinstance(cause, SystemExit):
        return
    # The first two are `user_code` and what called it.
    ours = any(Path(frame.filename).is_relative_to(PROJECT) for frame in traceback.extract_tb(cause.__traceback__)[2:])
    trace = _users(cause.__traceback__) or (cause.__traceback__ if ours else None)
    if trace is not None:
        traceback.print_exception(cause.with_traceback(trace), chain=False)


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it ends the program, with sys.exit({'' if error.code is None else repr(error.code)})"
    text = " ".join(str(error).split())
    reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return reason if len(reason) <= LONGEST_REASON else f"{reason[: LONGEST_REASON - 3]}..."


def _place(error: BaseException) -> str:
    """The innermost line of the user's own in the traceback; nothing where there is none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_foreign(frame.filename)]
    if isinstance(error, SyntaxError) and error.filename and not _is_foreign(error.filename):
        return f" ({_shown(error.filename)}, line {error.lineno})"
    return f" ({_shown(frames[-1].filename)}, line {frames[-1].lineno}, in {frames[-1].name})" if frames else ""


def _users(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first line of the user's own."""
    while trace is not None and _is_foreign(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return trace


def _is_foreign(filename: str) -> bool:
    """Whether a file is no user's: part of this project, of Python, or of an installed package."""
    path = Path(filename)
    packages = {"site-packages", "dist-packages"}
    return (
        filename.startswith("<")
        or not packages.isdisjoint(path.parts)
        or any(path.is_relative_to(folder) for folder in (PROJECT, sysconfig.get_path("stdlib")))
    )


def _shown(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
