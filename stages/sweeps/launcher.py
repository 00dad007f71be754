"""Hydra's launcher, which runs a sweep's jobs here, in other processes, or on a cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.common.errors import ConfigError, UserError
from stages.configuration.composition import CONF, composing
from stages.sweeps import job
from stages.sweeps.preparation import SWEEPS

BASIC = ("hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "hydra._internal.core_plugins.basic_launcher.BasicLauncher")
QUIET = ("hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.sweep.subdir=${hydra.job.num}")


def runs_in_parallel(overrides: Sequence[str]) -> bool:
    """Whether Hydra's launcher may run several jobs at once.

    Raises:
        UserError: the launcher is not installed, or the sweeper is not the basic one.
    """
    import hydra

    if any(override.lstrip("+").startswith("hydra.sweep.") for override in overrides):
        raise UserError(f"hydra.sweep: the folders of a sweep are in {SWEEPS}/ and cannot be set")
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
