"""Links to pages of the MLflow UI."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from stages.common.passwords import has_password, without_user
from stages.tracking.store import SQLITE

UI = "http://127.0.0.1:5000"


def comparison(uri: str, experiment_id: str, runs: Sequence[str] = ()) -> str:
    """How to open an experiment's runs side by side in the MLflow UI: all of them, or those with the given ids."""
    page = f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    if runs:
        listed = ", ".join(f"'{run}'" for run in runs)
        page += f"&searchFilter={quote(f'attributes.run_id IN ({listed})')}"
    return how_to_open(uri, page)


def how_to_open(uri: str, page: str) -> str:
    """The command that starts the MLflow UI where no server runs, and the address of one of its pages."""
    if uri.startswith("http"):
        return f"{without_user(uri).rstrip('/')}/{page}"  # a browser asks for them
    path = Path(uri.removeprefix(SQLITE))
    if uri.startswith(SQLITE) and path.is_relative_to(Path.cwd()):
        uri = f"{SQLITE}{path.relative_to(Path.cwd())}"
    store = '"$MLFLOW_TRACKING_URI"' if has_password(uri) else uri
    return f"mlflow ui --backend-store-uri {store}\n         {UI}/{page}"
