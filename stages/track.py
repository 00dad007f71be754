"""Print the result, write build/report.html, and log both to MLflow: one run per result, however often and from wherever it was built.

A result is known by a key made from the configuration and from the bytes of the quantized model and its reports. The stage
always runs, so that results which DVC restored from its cache are logged as well; a result that is already in MLflow costs a
look into its SQLite file and no import of MLflow.

Examples:
    dvc repro                        # build what is new, and track it
    python -m stages.track           # track what is in build/, for example elsewhere:
    MLFLOW_TRACKING_URI=http://mlflow.example:5000 python -m stages.track
"""

from __future__ import annotations

import os
from pathlib import Path

from stages.common import artifacts
from stages.configuration.schema import Config
from stages.report import page
from stages.report.summary import summary
from stages.stage import run
from stages.tracking.links import comparison
from stages.tracking.runs import LATER, content_key, log
from stages.tracking.store import tracking_uri

NAME = "track"


def main(config: Config) -> None:
    """Print the summary; write the report; log the result unless it is there already; say where to look at it."""
    _warn_of_stale_inputs()
    print(summary(config))
    key = content_key(config)
    page.write(config, key)
    print(f"report: {page.REPORT}")
    if not config.tracking.enabled:
        print("MLflow: off (tracking.enabled is false)")
        return
    if LATER in os.environ:
        print("MLflow: the sweep logs this result")
        return
    uri = tracking_uri(config)
    logged, new = log(config, uri)
    print(f"MLflow: {'logged' if new else 'already logged'} as {logged.name}")
    print(f"compare: {comparison(uri, logged.experiment_id)}")


def _warn_of_stale_inputs() -> None:
    """DVC does not watch model and data files outside its outputs, so edits of those are looked for here."""
    for file in artifacts.read_json(artifacts.record("prepare")).get("files", []):
        path = Path(file["path"])
        found = path.stat() if path.is_file() else None
        if found and (found.st_size, found.st_mtime_ns) == (file["size"], file["mtime_ns"]):
            continue
        if found is None or artifacts.file_sha256(path) != file["sha256"]:
            what = "is gone" if found is None else "has changed"
            print(f"WARNING: {path} {what} since it was used; `dvc repro --force prepare && dvc repro` builds on it")


if __name__ == "__main__":
    run(NAME, main)
