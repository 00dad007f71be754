"""Outputs that no metric can take."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as operations

from stages.common.errors import UserError
from stages.runtime.metrics import OutputMetric


def test_an_output_of_unknown_rank_cannot_be_judged() -> None:
    x = operations.parameter(ov.PartialShape.dynamic(), np.float32, name="x")
    with pytest.raises(UserError, match="rank of the model's output 0 is not known"):
        OutputMetric().bind(ov.Model([operations.relu(x)], [x]))
