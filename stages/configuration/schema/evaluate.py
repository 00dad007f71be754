"""What is measured of the models."""

from __future__ import annotations

from dataclasses import dataclass

from stages.configuration.schema.fields import param


@dataclass
class Benchmark:
    """Latency and throughput measurement."""

    enabled: bool = param(True, "measure latency and throughput")
    seconds: float = param(6.0, "measuring time for all models together, at most", above=0.0)


@dataclass
class Evaluate:
    """What is measured of the FP32 and the quantized model."""

    primary_metric: str | None = param(None, "the metric that is reported first and that searches optimise; null: the first of `metric`")
    confidence: float = param(0.95, "confidence level of the intervals", above=0.0, below=1.0)
    noise_samples: int = param(16, "validation samples for the per-layer noise; 0 leaves the noise out", low=0)
    effect_samples: int = param(
        16, "validation samples for the effect of each block of quantizers on the outputs, at most; 0 leaves it out", low=0
    )
    effect_inferences: int | None = param(
        None,
        "how many inferences that may take, of half a model on average: first there are fewer samples, then the noisiest blocks alone; "
        "null: four per validation sample, at least 400",
        low=1,
    )
    fidelity_samples: int = param(
        4, "validation samples on which INT8 is compared with what its quantizers say, written out; 0 leaves that out", low=0
    )
    benchmark: Benchmark = param(Benchmark, "latency and throughput")
