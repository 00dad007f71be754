"""Bias correction."""

from __future__ import annotations

from dataclasses import dataclass

from stages.configuration.schema.fields import param


@dataclass
class BiasCorrection:
    """Shift biases by the mean error that quantized weights cause."""

    enabled: bool = param(True, "correct biases after quantization")
    use_fast_bias: bool = param(
        True, "FastBiasCorrection (arithmetic on the statistics) or the accurate BiasCorrection (walks the layers with inference)"
    )
    threshold: float | None = param(
        None,
        "a layer is left alone when a bias would change by this factor or more; null: 2 with use_fast_bias, else 1000, as POT",
        above=0.0,
    )
    correct_zero_biases: bool = param(True, "also correct layers without a bias or with zero elements, which POT leaves alone")
    apply_for_all_nodes: bool = param(False, "also correct layers whose weights are not quantized")
