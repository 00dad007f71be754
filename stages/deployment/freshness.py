"""Whether what is in build/ is what params.yaml and the files that it names say; nothing heavy is imported."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from stages.common import artifacts
from stages.common.errors import UserError
from stages.common.messages import show
from stages.configuration.completion import completed
from stages.configuration.composition import PARAMS, compose
from stages.configuration.loading import load_config
from stages.configuration.schema import APART, Config
from stages.configuration.validation import checked

LOCK = Path("dvc.lock")
ELSEWHERE = (*APART, "cluster")  # sections that may differ from those of the build: nothing follows from them
CHAIN = ("prepare", "collect_statistics", "quantize", "correct_bias", "evaluate", "accuracy_aware")
RUN = "run `dvc repro`"


def fresh_config() -> Config:
    """The project's configuration, when build/ is what it asks for.

    The sections on which no result depends are as they are in params.yaml now, whatever build/ was made with.

    Raises:
        UserError: build/ is missing or stale.
        ConfigError: params.yaml is wrong.
    """
    built = load_config()
    wanted = completed(checked(compose()))
    before, now = (json.loads(json.dumps(dataclasses.asdict(config))) for config in (built, wanted))
    if (difference := first_difference(before, now)) is not None:
        key, was, becomes = difference
        raise UserError(f"build/ is stale: {_words(key, was, becomes)}; {RUN}")
    for stage, key in _stages_of_other_params(before):
        raise UserError(f"build/ is stale: the stage {stage} ran with another {key} than {PARAMS} has now; {RUN}")
    for after, stage in _stages_of_other_inputs():
        raise UserError(f"build/ is stale: {stage} has been built again after {after}; {RUN}")
    return wanted


def first_difference(before: Any, now: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first dotted key at which two configurations differ, with both values; None where they are the same."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return None if before == now else (key, before, now)
    for name in dict.fromkeys([*before, *now]):
        if not key and name in ELSEWHERE:
            continue
        if (found := first_difference(before.get(name), now.get(name), f"{key}.{name}".lstrip("."))) is not None:
            return found
    return None


def _words(key: str, was: Any, becomes: Any) -> str:
    section, _, rest = key.partition(".")
    if section == "user_code":
        return f"{rest} has changed"
    if section == "files":
        return f"{rest.partition('.')[2]} has changed"
    return f"{key} is {show(becomes)} in {PARAMS}, and {show(was)} in {artifacts.CONFIG}"


def _stages_of_other_params(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Stages that ran with another value of a key than build/config.json has, by what DVC wrote down: `config` alone may have run since."""
    if not LOCK.is_file():
        return
    lock = yaml.load(LOCK.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
    for stage, entry in lock.get("stages", {}).items():
        for key, value in entry.get("params", {}).get(str(artifacts.CONFIG), {}).items():
            current: Any = config
            for name in key.split("."):
                current = current.get(name) if isinstance(current, dict) else None
            if current != value:
                yield stage, key


def _stages_of_other_inputs() -> Iterator[tuple[str, str]]:
    """Stages whose input is not what they ran with: the one before it has run since."""
    for stage in CHAIN[1:]:
        inputs = artifacts.folder(stage) / "inputs.json"
        for before, sha256 in artifacts.read_json(inputs).items():
            if artifacts.folder_sha256(artifacts.folder(before)) != sha256:
                yield stage, before
