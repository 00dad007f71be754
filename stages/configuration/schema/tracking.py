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
    log_models: bool = param(True, "store the FP32 and quantized IRs with the run")
