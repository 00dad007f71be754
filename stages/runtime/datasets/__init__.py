"""Data sets, and samples checked against the model they are for."""

from stages.runtime.datasets.binding import (
    Arrays,
    Dataset,
    Identity,
    ImageFolder,
    ModelInput,
    Sample,
    Samples,
    checked,
    fitted,
    identity,
    model_inputs,
)

__all__ = [
    "Arrays",
    "Dataset",
    "Identity",
    "ImageFolder",
    "ModelInput",
    "Sample",
    "Samples",
    "checked",
    "fitted",
    "identity",
    "model_inputs",
]
