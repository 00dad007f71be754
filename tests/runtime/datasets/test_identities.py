"""What tells samples apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.common.errors import UserError
from stages.runtime.datasets import Sample, identity


def test_identity_tells_contents_apart() -> None:
    zeros, ones = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    inputs: list[dict[str, np.ndarray]] = [
        {"x": zeros},
        {"x": ones},
        {"y": zeros},
        {"x": zeros.astype(np.float64)},
        {"x": zeros.reshape(2, 1)},
        {"x": zeros, "y": zeros},
    ]
    targets: list[Any] = [0, "0", 0.0, [0], [0, 0], "", {"a": 0}, {"b": 0}, np.zeros(1), np.int64(0), ["a", "b"], ["ab", ""], False]
    assert len({identity(Sample(given)).inputs for given in inputs}) == len(inputs)
    assert len({identity(Sample({}, target)).target for target in targets}) == len(targets)
    assert identity(Sample({"x": zeros})).target is None


def test_identity_is_of_contents_only() -> None:
    one = {"x": np.arange(6).reshape(2, 3), "y": np.ones(1)}
    other = {"y": np.ones(1), "x": np.arange(6).reshape(3, 2).T.reshape(2, 3) * 0 + np.asfortranarray(np.arange(6).reshape(2, 3))}
    assert identity(Sample(one, {"a": 1, "b": 2}, "one")) == identity(Sample(other, {"b": 2, "a": 1}, "other"))


@pytest.mark.parametrize("target", [object(), np.array([{}], dtype=object), [object()]])
def test_targets_without_identity(target: Any) -> None:
    with pytest.raises(UserError, match=r"sample 3: the target is (of type object|an array of Python objects)"):
        identity(Sample({}, target, "sample 3"))
