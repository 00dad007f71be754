"""What is stored of the calibration samples."""

from __future__ import annotations

from dataclasses import dataclass

from stages.configuration.schema.fields import param


@dataclass
class CollectStatistics:
    """What the one pass over the calibration samples stores."""

    outlier_probs: list[float] = param(
        list, "quantiles of whole tensors that are stored, with all below the largest; what the estimators need is added to these"
    )
    channel_outlier_probs: list[float] = param(list, "the same per channel, which takes longer; none by default")
    inplace_statistic: bool = param(
        False,
        "spare memory at the price of time: one sample at a time, and pass after pass with so few tensors that at most 64 MB of it"
        " leave the model at once; the statistics are the same to the byte",
    )
    perchannel: bool = param(False, "store minima and maxima per channel of all tensors; set where activations.granularity asks for it")
    pot_compatible: bool = param(
        False,
        "store also what only quantization.pot_compatible reads, and set where that is: mean outputs of layers, lowest values of"
        " tensors that are never negative",
    )
