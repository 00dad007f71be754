"""Preparation of a sweep's jobs: their parameters, copies of the project, and where they meet."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from stages.common.errors import ConfigError
from stages.configuration.completion import completed
from stages.configuration.composition import PARAMS, compose
from stages.configuration.overrides import Combination, edited
from stages.configuration.schema import Config
from stages.configuration.validation import checked
from stages.sweeps import copies, job
from stages.tracking import store

SWEEPS = Path("multirun")


def prepare(place: Path, wanted: Sequence[Combination], *, parallel: bool) -> list[job.Job]:
    """Write parameters and a copy of the project for every job; one whose configuration is refused gets no copy.

    Raises:
        UserError: an override does not fit the configuration, or the project is no DVC project.
    """
    root, text = Path.cwd(), PARAMS.read_text(encoding="utf-8") if PARAMS.exists() else ""
    cache = copies.cache_folder(root)
    place.mkdir(parents=True, exist_ok=True)
    (place / PARAMS).write_text(text, encoding="utf-8")  # `promote` sees whether it has been edited since
    edits = [edited(text, combination.overrides) for combination in wanted]
    for note in dict.fromkeys(note for edit in edits for note in edit.notes):
        print(f"note: {note}", flush=True)
    configs = [_config(place, edit.text) for edit in edits]
    keys = [stage_keys(config) if isinstance(config, Config) else {} for config in configs]
    cuts = shared_stages(keys) if parallel else [()] * len(wanted)
    jobs = []
    for number, (combination, edit, config) in enumerate(zip(wanted, edits, configs, strict=True)):
        entry = job.Job(number, combination.differences, combination.overrides, cuts[number])
        if isinstance(config, ConfigError):
            entry = dataclasses.replace(entry, error=f"config: error: {config}")
        else:
            uri = store.tracking_uri(config)
            entry = dataclasses.replace(entry, tracking_uri=uri if uri.startswith(store.SQLITE) else None)
            copies.copy_project(root, job.folder_of(place, number), edit.text, cache, copies.named_paths(root, dataclasses.asdict(config)))
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


def shared_stages(keys: Sequence[Mapping[str, str]]) -> list[tuple[tuple[str, str], ...]]:
    """For each job, the stages up to which it does the same as others that then part from it, with the key they have in common.

    Args:
        keys: `stage_keys` of each job, in the order of stages.
    """

    def jobs_in_common(stage: str, key: str) -> list[int]:
        return [number for number, others in enumerate(keys) if others.get(stage) == key]

    found = []
    for own in keys:
        groups = [(stage, key, jobs_in_common(stage, key)) for stage, key in own.items()]
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
