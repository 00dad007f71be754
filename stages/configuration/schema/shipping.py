"""What is shipped of a result, and what it must keep."""

from __future__ import annotations

from dataclasses import dataclass

from stages.configuration.schema.fields import param

MODELS = ("best", "int8", "accuracy_aware", "tune", "fp32")


@dataclass
class Shipment:
    """What `python -m stages.package` puts into the package."""

    model: str = param(
        "best",
        "the model that is packaged and checked; best: tune's if its budget holds, else accuracy_aware's if its budget holds, else int8",
        choices=MODELS,
    )
    name: str | None = param(None, "name of the package and of the model on a server; null: model.name, a dash and what model it is")
    version: int = param(1, "version of the model on a server, which serves the largest", low=1)
    samples: int = param(8, "validation samples in the package, with the outputs to expect; 0: no data leaves the project", low=0)
    license: str | None = param(None, "licence of the model, as an SPDX identifier where it has one, e.g. Apache-2.0")
    description: str | None = param(None, "what the model is for, in a sentence or two of Markdown")


@dataclass
class Check:
    """Limits that `python -m stages.check` holds a result to; what is null is not checked."""

    maximal_drop: float | None = param(None, "how much worse than FP32 the primary metric may be, in its own unit (0.01: 1 point)", low=0.0)
    metrics: dict[str, float] = param(dict, "the same of other metrics, by name")
    minimal_speed_up: float | None = param(None, "how many times faster than FP32 in the device's default precision, at least", above=0.0)
    maximal_size_mb: float | None = param(None, "model file and weights, at most, in megabytes", above=0.0)
    maximal_fidelity: float | None = param(
        None, "how far the compiled model may be from what its quantizers say, as a multiple of what rounding explains", above=0.0
    )
    baseline: str | None = param(None, "file of an earlier result, written by `--write-baseline`, whose intervals must not be left")
