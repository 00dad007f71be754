"""What tells samples apart: hashes of what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from stages.common.errors import UserError
from stages.runtime.datasets.sample import Sample


class Identity(NamedTuple):
    """What tells samples apart: SHA-256 of the inputs' names, types, shapes and values, and of the target (None: no target)."""

    inputs: str
    target: str | None


def identity(sample: Sample) -> Identity:
    """The identity of a checked sample.

    Raises:
        UserError: the target is not made of numbers, text, arrays, lists and dictionaries.
    """
    try:
        return Identity(_content_hash(sample.inputs), None if sample.target is None else _content_hash(sample.target))
    except UserError as error:
        raise UserError(f"{sample.label}: {error}") from error


def _content_hash(value: Any) -> str:
    digest = hashlib.sha256()
    _update(digest, value)
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.ascontiguousarray(value)
        if array.dtype.hasobject:
            raise UserError("the target is an array of Python objects; use numbers or text")
        digest.update(f"array {array.dtype.str} {np.shape(value)}\n".encode())
        digest.update(array.data if array.dtype.kind not in "mMUSV" else array.tobytes())
    elif isinstance(value, Mapping):
        digest.update(f"map {len(value)}\n".encode())
        for key in sorted(value, key=str):
            _update(digest, str(key))
            _update(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(f"list {len(value)}\n".encode())
        for item in value:
            _update(digest, item)
    elif value is None or isinstance(value, (str, bool, int, float)):
        text = f"{type(value).__name__} {value!r}"
        digest.update(f"{len(text)} {text}\n".encode())
    else:
        raise UserError(f"the target is of type {type(value).__name__}; use numbers, text, arrays, lists or dictionaries of them")
