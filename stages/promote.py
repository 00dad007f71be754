"""Make the parameters of a sweep's job the project's own: its params.yaml replaces the one in this folder.

Examples:
    python -m stages.promote multirun/2026-11-21_12-30-00/1
    python -m stages.promote 1                                   job 1 of the latest sweep

Comments stay. The change is printed; `dvc repro` then takes the results from DVC's cache.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path

from stages.common import artifacts
from stages.common.errors import UserError
from stages.configuration.composition import PARAMS
from stages.configuration.loading import load_config
from stages.stage import fail
from stages.sweeps import job
from stages.sweeps.preparation import SWEEPS
from stages.tracking import runs, store


def main(arguments: Sequence[str] | None = None) -> int:
    """Replace params.yaml; 0, or 1 when that cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.promote", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", help="folder of a job, or its number in the latest sweep")
    parser.add_argument(
        "--force", action="store_true", help="replace params.yaml although it was edited after the sweep began, or the job failed"
    )
    given = parser.parse_args(arguments)
    try:
        promote(folder_of(given.job), force=given.force)
    except (UserError, OSError) as error:
        return fail("promote", error, PARAMS)
    return 0


def folder_of(name: str) -> Path:
    """The folder of the job that is meant.

    Raises:
        UserError: there is none.
    """
    folder = Path(name)
    if name.isdigit():
        sweeps = sorted((path for path in SWEEPS.glob("*") if path.is_dir()), key=lambda path: path.stat().st_mtime)
        if not sweeps:
            raise UserError(f"{SWEEPS}: there is no sweep yet")
        folder = job.folder_of(sweeps[-1], int(name))
    if not folder.name.isdigit() or not (folder / PARAMS).is_file():
        raise UserError(f"{folder}: expected the folder of a sweep's job, e.g. {SWEEPS}/<date>/0")
    return folder


def promote(folder: Path, *, force: bool) -> None:
    """Replace params.yaml by the job's, and print what changes.

    Raises:
        UserError: the job failed, or params.yaml was edited after the sweep began.
    """
    result = job.result_of(folder.parent, int(folder.name))
    if result.error is not None and not force:
        raise UserError(f"{folder}: the job failed: {result.error}; --force takes its parameters nevertheless")
    before = PARAMS.read_text(encoding="utf-8") if PARAMS.exists() else ""
    after = (folder / PARAMS).read_text(encoding="utf-8")
    if before == after:
        print(f"{PARAMS} already says the same")
        _crown(folder, result)
        return
    if before != (folder.parent / PARAMS).read_text(encoding="utf-8") and not force:
        raise UserError(f"{PARAMS} was edited after the sweep began; --force replaces it nevertheless")
    artifacts.write_text(PARAMS, after)
    print("".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True), f"{PARAMS} before", str(PARAMS), n=1)), end="")
    print("`dvc repro` takes the results from DVC's cache")
    _crown(folder, result)


def _crown(folder: Path, result: job.Result) -> None:
    """Let MLflow's alias `champion` name the job's model, where models are registered (tracking.register)."""
    if result.run is None:
        return
    with chdir(folder):
        config = load_config()
        if config.tracking.register is not None:
            uri = job.read(Path(".."), int(folder.name)).tracking_uri or store.tracking_uri(config)
            runs.champion(config, uri, result.run)


if __name__ == "__main__":
    sys.exit(main())
