"""Hydra's launcher, which runs a sweep's jobs here, in other processes, or on a cluster."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from stages.common.errors import ConfigError, UserError
from stages.configuration.composition import CONF, composing
from stages.sweeps import job
from stages.sweeps.preparation import SWEEPS

BASIC = ("hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "hydra._internal.core_plugins.basic_launcher.BasicLauncher")
QUIET = ("hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.sweep.subdir=${hydra.job.num}")


def folder_of_sweep(overrides: Sequence[str]) -> tuple[Path, list[str]]:
    """The folder of a new sweep, and Hydra's overrides without the one that sets it, `hydra.sweep.dir`.

    Raises:
        UserError: the folder is not empty, or in the project where DVC would take its jobs for parts of the project; or the folders
            of jobs are to be named otherwise.
    """
    folders = [override.partition("=")[2].strip("'\"") for override in overrides if override.lstrip("+").startswith("hydra.sweep.dir=")]
    others = [override for override in overrides if not override.lstrip("+").startswith("hydra.sweep.dir=")]
    if any(override.lstrip("+").startswith("hydra.sweep.") for override in others):
        raise UserError("hydra.sweep.subdir: cannot be set: the folder of a job is its number, by which `stages.promote` finds it")
    if not folders:
        name = time.strftime("%Y-%m-%d_%H-%M-%S")
        return next(path for count in range(1, 1000) if not (path := SWEEPS / (name if count == 1 else f"{name}_{count}")).exists()), others
    place, root = Path(os.path.normpath(folders[-1])), Path.cwd()
    absolute, sweeps = place.resolve(), (root / SWEEPS).resolve()
    inside = absolute.is_relative_to(root) and not absolute.is_relative_to(sweeps)
    if "${" in folders[-1] or not folders[-1]:
        raise UserError(f"hydra.sweep.dir: {folders[-1]!r} is not allowed; expected a folder, e.g. {SWEEPS}/presets")
    if inside or absolute == sweeps:
        raise UserError(
            f"hydra.sweep.dir: {folders[-1]!r} is not allowed; expected a folder in {SWEEPS}/, or outside the project: elsewhere DVC would"
            " take the jobs' pipelines for the project's own"
        )
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UserError(f"hydra.sweep.dir: {folders[-1]!r} is not allowed; expected a folder that is empty, or not there")
    return place, others


def runs_in_parallel(overrides: Sequence[str]) -> bool:
    """Whether Hydra's launcher may run several jobs at once.

    Raises:
        UserError: the launcher is not installed, or the sweeper is not the basic one.
    """
    import hydra

    try:
        with composing():
            settings = hydra.compose("config", overrides=list(overrides), return_hydra_config=True).hydra
    except ConfigError as error:
        if any(override.lstrip("+").startswith("hydra/launcher=") for override in overrides):
            raise UserError(f"{error}; launchers other than basic: pip install -e '.[sweep]'") from None
        raise
    sweeper, launcher = settings.sweeper["_target_"], settings.launcher["_target_"]
    if sweeper != BASIC[0]:
        raise UserError(
            f"hydra/sweeper: {sweeper} is not supported, because it chooses values by what jobs return; that is what `tune` is for"
        )
    return launcher != BASIC[1]


def launch(place: Path, own: Sequence[str], overrides: Sequence[str]) -> bool:
    """Let Hydra run the jobs; whether it was interrupted. What becomes of each is in its result."""
    import hydra

    os.environ[job.SWEEP] = str(os.getpid())
    sys.argv = ["stages.sweep", "--multirun", *own, *overrides, *QUIET, f"hydra.sweep.dir='{place.resolve()}'"]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF.resolve()), config_name="config")(job.task)()
    except KeyboardInterrupt:
        return True
    except SystemExit as error:  # of the launcher: jobs that it lost have no result
        print(f"sweep: Hydra's launcher ended with {error.code}", file=sys.stderr)
    return False
