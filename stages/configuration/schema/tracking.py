"""MLflow."""

from __future__ import annotations

from dataclasses import dataclass

from stages.configuration.schema.fields import param


@dataclass
class Tracking:
    """Where results are logged with MLflow."""

    enabled: bool = param(True, "log to MLflow")
    tracking_uri: str = param("sqlite:///mlflow.db", "MLflow tracking URI; the environment's MLFLOW_TRACKING_URI wins")
    experiment: str = param("quantization", "MLflow experiment")
    register: str | None = param(
        None, "name of a registered model: each result becomes a version of it, and `promote` gives the alias champion; null: none"
    )
    log_models: bool = param(True, "store the FP32 and quantized IRs with the run, and the one to deploy as a model that MLflow loads")
