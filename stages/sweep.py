"""Build variants of the project side by side: one pipeline per combination of the given values, and a table of them all.

Examples:
    python -m stages.sweep -m quantization.preset=performance,mixed,accuracy
    python -m stages.sweep -m target_device=cpu,npu quantization.preset=performance,mixed     every combination
    python -m stages.sweep -m experiment=none,outliers                                        options of any group in conf/
    python -m stages.sweep -m 'quantization.stat_subset_size=range(50,301,50)'                50, 100, ... 300
    python -m stages.sweep -m quantization.preset=mixed bias_correction.enabled=true,false    a fixed value, and a swept one
    python -m stages.sweep -m quantization.preset=performance,mixed hydra/launcher=joblib     as many at once as there are cores
    python -m stages.sweep -m ... hydra/launcher=submitit_slurm hydra.launcher.partition=cpu  on a cluster with a shared disk

Each job is a `dvc repro` in a copy of the project, multirun/<date>/<number>. The folder you are in, its params.yaml and its
dvc.lock stay as they are. Jobs share DVC's cache, so what two of them do alike is done once, and a sweep that is run again
takes seconds. Values and options of the command line win over params.yaml.

A job that fails does not stop the others; the table at the end names it, and the exit code is 1. `python -m stages.promote`
makes a job's parameters the project's own. Launchers other than Hydra's basic one: pip install -e '.[sweep]'.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from stages import track
from stages.common import artifacts
from stages.common.errors import ConfigError, UserError
from stages.common.units import plural
from stages.config import CONF, PARAMS, completed, compose, composing, load_config
from stages.configuration.overrides import Combination, combinations, edited
from stages.configuration.schema import Config
from stages.configuration.validation import checked
from stages.stage import fail, quiet_libraries
from stages.sweeps import comparison, job
from stages.sweeps.results import table, variants

SWEEPS = Path("multirun")
BASIC = ("hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "hydra._internal.core_plugins.basic_launcher.BasicLauncher")
QUIET = ("hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.sweep.subdir=${hydra.job.num}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sweep; 0 when every job succeeded, 1 when one failed, 130 when it was interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--multirun", action="store_true", help="as for any Hydra program; sweeps are all that this one does")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE,...", help="keys and groups with the values to try, comma-separated")
    quiet_libraries()
    try:
        return sweep(parser.parse_args(arguments).overrides)
    except (UserError, OSError) as error:
        return fail("sweep", error, SWEEPS)
    except KeyboardInterrupt:
        print("sweep: interrupted", file=sys.stderr)
        return 130


def sweep(overrides: Sequence[str]) -> int:
    """Prepare all jobs, run them, and print the table.

    Raises:
        UserError: an override or the project's configuration is wrong; nothing has run.
    """
    started = time.perf_counter()
    hydra = [override for override in overrides if override.lstrip("+").startswith(("hydra.", "hydra/"))]
    own = [override for override in overrides if override not in hydra]
    wanted = combinations(own)
    parallel = _runs_in_parallel(hydra)
    place = _new_folder()
    print(f"sweep: {plural(len(wanted), 'job')} in {place}/, and what they say in {place}/*.log", flush=True)
    jobs = prepare(place, wanted, parallel=parallel)
    interrupted = _launch(place, own, hydra)

    models = [model for entry in jobs for model in variants(place, entry)]
    text = table(models, place, parallel=parallel)
    print(f"\n{text}")
    succeeded = list(dict.fromkeys(model.number for model in models if model.error is None))
    print(f"{len(succeeded)} of {len(jobs)} jobs succeeded, {time.perf_counter() - started:.0f} seconds")
    if succeeded:
        _publish(place, own, jobs, text, comparison.page(own, models, parallel=parallel))
        print(f"adopt one: python -m stages.promote {job.folder_of(place, succeeded[0])}")
    if interrupted:
        print("interrupted: the same command goes on, because what is done comes from the cache")
        return 130
    return int(len(succeeded) < len(jobs))


# ------------------------------------------------------------------------------------------------ before


def prepare(place: Path, wanted: Sequence[Combination], *, parallel: bool) -> list[job.Job]:
    """Write parameters and a copy of the project for every job; one whose configuration is refused gets no copy.

    Raises:
        UserError: an override does not fit the configuration, or the project is no DVC project.
    """
    root, text = Path.cwd(), PARAMS.read_text(encoding="utf-8") if PARAMS.exists() else ""
    cache = job.cache_folder(root)
    place.mkdir(parents=True)
    (place / PARAMS).write_text(text, encoding="utf-8")  # `promote` sees whether it has been edited since
    edits = [edited(text, combination.overrides) for combination in wanted]
    for note in dict.fromkeys(note for edit in edits for note in edit.notes):
        print(f"note: {note}", flush=True)
    configs = [_config(place, edit.text) for edit in edits]
    keys = [stage_keys(config) if isinstance(config, Config) else {} for config in configs]
    cuts = meetings(keys) if parallel else [()] * len(wanted)
    jobs = []
    for number, (combination, edit, config) in enumerate(zip(wanted, edits, configs, strict=True)):
        entry = job.Job(number, combination.differences, combination.overrides, cuts[number])
        if isinstance(config, ConfigError):
            entry = dataclasses.replace(entry, error=f"config: error: {config}")
        else:
            uri = track.tracking_uri(config)
            entry = dataclasses.replace(entry, tracking_uri=uri if uri.startswith(track.SQLITE) else None)
            job.copy_project(root, job.folder_of(place, number), edit.text, cache, job.named_paths(root, dataclasses.asdict(config)))
        job.write(place, entry)
        jobs.append(entry)
    return jobs


def stage_keys(config: Config) -> dict[str, str]:
    """By stage, a key of what it and all stages before it depend on in the configuration; jobs with the same key do the same."""
    stages: dict[str, Any] = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    values = dataclasses.asdict(config)
    digest = hashlib.sha256()
    keys = {}
    for stage, description in stages.items():
        read = [name for entry in description.get("params", []) if isinstance(entry, Mapping) for names in entry.values() for name in names]
        if read and not description.get("always_changed"):
            digest.update(json.dumps([stage, [_at(values, name) for name in read]], sort_keys=True, default=str).encode())
            keys[stage] = digest.hexdigest()[:16]
    return keys


def meetings(keys: Sequence[Mapping[str, str]]) -> list[tuple[tuple[str, str], ...]]:
    """For each job, the stages up to which it does the same as others that then part from it, with the key they have in common.

    Args:
        keys: `stage_keys` of each job, in the order of stages.
    """

    def company(stage: str, key: str) -> list[int]:
        return [number for number, others in enumerate(keys) if others.get(stage) == key]

    found = []
    for own in keys:
        groups = [(stage, key, company(stage, key)) for stage, key in own.items()]
        following = [*(group for _, _, group in groups[1:]), []][: len(groups)]
        found.append(
            tuple((stage, key) for (stage, key, group), after in zip(groups, following, strict=True) if len(group) > 1 and after != group)
        )
    return found


def _config(place: Path, params: str) -> Config | ConfigError:
    """The configuration that a params.yaml makes, or what is wrong with it."""
    folder = place / ".params"
    folder.mkdir(exist_ok=True)
    (folder / PARAMS).write_text(params, encoding="utf-8")
    try:
        return completed(checked(compose(params=folder / PARAMS)))
    except ConfigError as error:
        return error


def _at(values: Any, key: str) -> Any:
    for name in key.split("."):
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def _new_folder() -> Path:
    """A folder for this sweep that does not exist yet."""
    name = time.strftime("%Y-%m-%d_%H-%M-%S")
    return next(path for count in range(1, 1000) if not (path := SWEEPS / (name if count == 1 else f"{name}_{count}")).exists())


# ------------------------------------------------------------------------------------------------ Hydra


def _runs_in_parallel(overrides: Sequence[str]) -> bool:
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


def _launch(place: Path, own: Sequence[str], overrides: Sequence[str]) -> bool:
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


# ------------------------------------------------------------------------------------------------ after


def _publish(place: Path, own: Sequence[str], jobs: Sequence[job.Job], text: str, page: str) -> None:
    """Write the comparison, log it to MLflow beside the jobs' runs, and say how to open it."""
    (place / track.COMPARISON).write_text(page, encoding="utf-8")
    print(f"comparison: {place / track.COMPARISON}")
    runs = {entry.number: run for entry in jobs if (run := job.result_of(place, entry.number).run) is not None}
    if not runs:
        return
    first = jobs[min(runs)]
    uri, experiment = _tracking(place, first)
    try:
        opened = track.log_sweep(uri, experiment, " ".join(own) or "params.yaml", text, page)
    except UserError as error:
        print(f"sweep: the comparison is not in MLflow: {error}", file=sys.stderr)
        return
    print(f"compare: {track.how_to_open(uri, opened)}")
    same = [run.id for run in runs.values() if run.experiment_id == runs[first.number].experiment_id]
    print(f"charts:  {track.comparison(uri, runs[first.number].experiment_id, same).splitlines()[-1].strip()}")


def _tracking(place: Path, entry: job.Job) -> tuple[str, str]:
    """Where a job's result was logged: tracking URI and experiment."""
    config = load_config(job.folder_of(place, entry.number) / artifacts.CONFIG)
    return entry.tracking_uri or track.tracking_uri(config), config.tracking.experiment


if __name__ == "__main__":
    sys.exit(main())
