"""Labels as metrics take them, in the forms in which they come."""

from __future__ import annotations

from typing import Any

import numpy as np


def only(target: Any) -> Any:
    """What an array or list of one thing holds, as rows of labels [N, 1] do; anything else as it is."""
    while isinstance(target, (list, tuple)) and len(target) == 1:
        (target,) = target
    return target.item() if isinstance(target, (np.ndarray, np.generic)) and np.size(target) == 1 else target


def class_index(target: Any, *, two: bool = False) -> int | None:
    """A label as a class index: a whole number, alone or in an array of one; of two classes also false or true. None otherwise."""
    label = only(target)
    if isinstance(label, bool) and not two:
        return None
    return int(label) if isinstance(label, (int, float)) and float(label).is_integer() else None


def class_map(target: Any) -> np.ndarray | None:
    """A label [H, W] as a class map: whole numbers, or of two classes false and true; None otherwise.

    Dimensions of size 1 before or behind, as of a channel, do not count.
    """
    labels = np.asarray(target)
    while labels.ndim > 2 and 1 in (labels.shape[0], labels.shape[-1]):
        labels = labels[0] if labels.shape[0] == 1 else labels[..., 0]
    if labels.ndim != 2 or labels.dtype.kind not in "biuf":
        return None
    whole = labels.dtype.kind != "f" or bool(np.all(labels == np.rint(labels)))
    return labels.astype(np.int64) if whole else None


def shown(target: Any) -> str:
    """What a label is, cut to a readable length."""
    if target is None:
        return "an unlabelled sample"
    if isinstance(target, np.ndarray):
        return f"an array of {target.dtype} {list(target.shape)}"
    text = repr(target)
    return f"{type(target).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
