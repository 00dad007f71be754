"""How models are run."""

from __future__ import annotations

from dataclasses import dataclass

from stages.configuration.schema.fields import param


@dataclass
class Engine:
    """How models are run. Statistics, biases and the FP32 baseline always run in f32."""

    device: str = param("CPU", "OpenVINO device that runs the models")
    requests: int = param(0, "parallel inference requests; 0 lets OpenVINO choose", low=0)
    threads: int = param(0, "CPU threads; 0 lets OpenVINO choose", low=0)
    inference_precision: str = param(
        "default",
        "precision of what an INT8 model leaves float when it is evaluated; default on CPU: f32 where weights have zero points",
        choices=("default", "f32", "bf16", "f16"),
    )
