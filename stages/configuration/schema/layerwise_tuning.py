"""Layer-wise tuning."""

from __future__ import annotations

from dataclasses import dataclass

from stages.configuration.schema.fields import param


@dataclass
class LearningRate:
    """Learning rates in units that fit every layer; they fall to zero in a straight line over the steps."""

    weights: float = param(0.02, "of weights, in quantization steps; 0 keeps them", low=0.0)
    bias: float = param(0.02, "of biases, in the layer's root mean squared error before tuning; 0 keeps them", low=0.0)
    weight_fq: float = param(0.002, "of the logarithm of the weights' range; 0 keeps it", low=0.0)
    input_fq: float = param(0.002, "of the logarithm of the input's range, where it serves the layer alone; 0 keeps it", low=0.0)


@dataclass
class LayerwiseTuning:
    """Tune weights, biases and ranges layer by layer against the floating-point layer outputs, after bias correction."""

    use_layerwise_tuning: bool = param(False, "tune the layers")
    optimizer: str = param("Adam", "how gradients become steps", choices=("Adam", "SGD"))
    learning_rate: LearningRate = param(LearningRate, "learning rates")
    weight_decay: float = param(0.0, "pull of everything that is tuned back to where it started, added to the gradient", low=0.0)
    calibration_indices_pool: int = param(300, "how many calibration samples to learn from, drawn by seed", low=1)
    positions_per_sample: int = param(8, "output positions of a layer that are sampled from each of them", low=1)
    num_samples_for_tuning: int = param(12800, "sampled positions that a layer sees in all, again and again", low=1)
    batch_size: int = param(256, "sampled positions per step", low=1)
    use_only_fp_inputs: bool = param(
        True,
        "layers learn from the floating-point model's inputs; false: from the quantized model's, layer after layer, which takes longer",
    )
    seed: int | None = param(None, "seed of what is drawn; null: the project's", low=0)
