"""Build variants of the project side by side: one pipeline per combination of the given values, and a table of them all.

Examples:
    python -m stages.sweep -m quantization.preset=performance,mixed,accuracy
    python -m stages.sweep -m target_device=cpu,npu quantization.preset=performance,mixed     every combination
    python -m stages.sweep -m experiment=none,outliers                                        options of any group in conf/
    python -m stages.sweep -m 'quantization.stat_subset_size=range(50,301,50)'                50, 100, ... 300
    python -m stages.sweep -m quantization.preset=mixed bias_correction.enabled=true,false    a fixed value, and a swept one
    python -m stages.sweep -m quantization.preset=performance,mixed hydra/launcher=joblib     as many at once as there are cores
    python -m stages.sweep -m ... hydra/launcher=submitit_slurm hydra.launcher.partition=cpu  on a cluster with a shared disk
    python -m stages.sweep -m ... hydra.sweep.dir=multirun/presets                            a folder with a name
    python -m stages.sweep -m quantization.preset=mixed --cfg job --package quantization      only show what would be built
    python -m stages.sweep --info defaults                                                    which files of conf/, in which order
    eval "$(python -m stages.sweep --shell-completion install=bash)"                          TAB completes groups, keys and values

Each job is a `dvc repro` in a copy of the project, multirun/<date>/<number>. The folder you are in, its params.yaml and its
dvc.lock stay as they are. Jobs share DVC's cache, so what two of them do alike is done once, and a sweep that is run again
takes seconds. Values and options of the command line win over params.yaml.

A job that fails does not stop the others; the table at the end names it, and the exit code is 1. `python -m stages.promote`
makes a job's parameters the project's own. Launchers other than Hydra's basic one: pip install -e '.[sweep]'.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from stages.common import artifacts
from stages.common.errors import UserError
from stages.common.units import plural
from stages.configuration.composition import additions
from stages.configuration.display import CONFIGS, INFOS, completion, composed, composition_info
from stages.configuration.loading import load_config
from stages.configuration.overrides import combinations
from stages.stage import fail, quiet_libraries
from stages.sweeps import comparison, job
from stages.sweeps.adoption import adoption
from stages.sweeps.finals import timed
from stages.sweeps.launcher import folder_of_sweep, launch, runs_in_parallel
from stages.sweeps.preparation import SWEEPS, prepare
from stages.sweeps.results import table, variants
from stages.tracking import links, runs, store


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sweep; 0 when every job succeeded, 1 when one failed, 130 when it was interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--multirun", action="store_true", help="as for any Hydra program; sweeps are all that this one does")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE,...", help="keys and groups with the values to try, comma-separated")
    parser.add_argument("-c", "--cfg", choices=CONFIGS, help="show the composed configuration, and stop")
    parser.add_argument("-p", "--package", metavar="KEY", help="of the configuration show this section alone")
    parser.add_argument("-i", "--info", nargs="?", const="all", choices=INFOS, help="show how it is composed, and stop")
    parser.add_argument("-sc", "--shell-completion", action="store_true", help="install=bash or uninstall=bash")
    given = parser.parse_intermixed_args(arguments)
    quiet_libraries()
    try:
        if given.shell_completion:
            print(completion(" ".join(given.overrides), os.environ.get("COMP_LINE", ""), "stages.sweep"), end="")
            return 0
        if given.cfg or given.info:
            return shown(given)
        return sweep(given.overrides)
    except (UserError, OSError) as error:
        return fail("sweep", error, SWEEPS)
    except KeyboardInterrupt:
        print("sweep: interrupted", file=sys.stderr)
        return 130


def shown(given: argparse.Namespace) -> int:
    """Print the configuration of each job, or how it is composed; nothing is run."""
    own, hydra = _split(given.overrides)
    if given.cfg:
        print("---\n".join(composed(own, hydra, combinations(own), given.cfg, given.package)), end="")
    else:
        print(composition_info(given.info, own, hydra), end="")
    return 0


def _split(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides of the project's configuration, and those of Hydra's."""
    hydra = [override for override in overrides if override.lstrip("+").startswith(("hydra.", "hydra/"))]
    return [override for override in overrides if override not in hydra], hydra


def sweep(overrides: Sequence[str]) -> int:
    """Prepare all jobs, run them, and print the table.

    Raises:
        UserError: an override or the project's configuration is wrong; nothing has run.
    """
    started = time.perf_counter()
    own, hydra = _split(overrides)
    wanted = combinations(own)
    place, hydra = folder_of_sweep(hydra)
    parallel = runs_in_parallel(hydra)
    print(f"sweep: {plural(len(wanted), 'job')} in {place}/, and what they say in {place}/*.log", flush=True)
    jobs = prepare(place, wanted, parallel=parallel)
    interrupted = launch(place, additions(own), hydra)

    models = [model for entry in jobs for model in variants(place, entry)]
    succeeded = list(dict.fromkeys(model.number for model in models if model.error is None))
    finals = ""
    if len(succeeded) > 1 and not interrupted:
        seconds = load_config(job.folder_of(place, succeeded[0]) / artifacts.CONFIG).sweep.final_timing
        measured, finals = timed(place, models, seconds)
    else:
        measured = models
    text = "\n".join(filter(None, [table(measured, place, parallel=parallel), finals]))
    print(f"\n{text}")
    print(f"{len(succeeded)} of {len(jobs)} jobs succeeded, {time.perf_counter() - started:.0f} seconds")
    if succeeded:
        adopted = adoption(place, measured)
        # Without what is never the same twice: the final timing, and the folder's name.
        key = comparison.page(own, models, adoption(place, models), "", parallel=parallel).replace(str(place), "")
        _publish(place, own, jobs, text, comparison.page(own, measured, adopted, finals, parallel=parallel), key)
        print("\n".join(adopted.lines()))
    if interrupted:
        print("interrupted: the same command goes on, because what is done comes from the cache")
        return 130
    return int(len(succeeded) < len(jobs))


# ------------------------------------------------------------------------------------------------ after


def _publish(place: Path, own: Sequence[str], jobs: Sequence[job.Job], text: str, page: str, key: str) -> None:
    """Write the comparison, log it to MLflow beside the jobs' runs, and say how to open it.

    key: what is the same when the same sweep is run again.
    """
    (place / runs.COMPARISON).write_text(page, encoding="utf-8")
    print(f"comparison: {place / runs.COMPARISON}")
    logged = {entry.number: run for entry in jobs if (run := job.result_of(place, entry.number).run) is not None}
    if not logged:
        return
    first = jobs[min(logged)]
    uri, experiment = _tracking(place, first)
    try:
        opened = runs.log_sweep(uri, experiment, " ".join(own) or "params.yaml", text, page, key)
    except UserError as error:
        print(f"sweep: the comparison is not in MLflow: {error}", file=sys.stderr)
        return
    print(f"compare: {links.how_to_open(uri, opened)}")
    same = [run.id for run in logged.values() if run.experiment_id == logged[first.number].experiment_id]
    print(f"charts:  {links.comparison(uri, logged[first.number].experiment_id, same).splitlines()[-1].strip()}")


def _tracking(place: Path, entry: job.Job) -> tuple[str, str]:
    """Where a job's result was logged: tracking URI and experiment."""
    config = load_config(job.folder_of(place, entry.number) / artifacts.CONFIG)
    return entry.tracking_uri or store.tracking_uri(config), config.tracking.experiment


if __name__ == "__main__":
    sys.exit(main())
