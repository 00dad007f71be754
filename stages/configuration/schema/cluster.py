"""Where searches evaluate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stages.configuration.schema.fields import param


@dataclass
class Cluster:
    """Where searches evaluate their candidates."""

    kind: str = param("local", "local: threads of this process; dask: a Dask cluster", choices=("local", "dask"))
    workers: int = param(1, "candidates that are evaluated at once: local threads, or processes of a local Dask cluster", low=1)
    address: str | None = param(None, "Dask scheduler, e.g. tcp://10.0.0.1:8786; null: the stage starts a local cluster")
    start: dict[str, Any] | None = param(
        None, "a Dask cluster that the stage starts and scales to `workers`: `_target_` and its arguments, e.g. dask_jobqueue.SLURMCluster"
    )
    wait_minutes: float = param(5.0, "how long to wait for the first worker of a Dask cluster", above=0.0)
