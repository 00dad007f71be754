"""Where a result comes from: the stages and what they cost, settings, commit, identities and versions."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stages.common import artifacts
from stages.common.units import plural
from stages.configuration.completion import completed
from stages.configuration.schema import APART, COMPUTED, MISSING, Config
from stages.report import tune_section
from stages.report.accuracy_aware_section import BudgetSection
from stages.report.tune_section import Tuning

STAGES = {
    "config": "checks the configuration",
    "prepare": "imports the model, reads and checks every sample",
    "collect_statistics": "runs the calibration samples",
    "quantize": "decides what is quantized, and the ranges",
    "correct_bias": "shifts biases by the error of quantized weights",
    "evaluate": "measures accuracy, speed and noise",
    "accuracy_aware": "reverts layers until the accuracy budget holds",
    "tune": "searches the fastest configuration within the budget",
}
LOCK = "dvc.lock"
# What holds measured times, and nothing else that reports/ and the models' folders do not hold, too.
WITH_TIMES = ("build/records/", "build/evaluate", "build/accuracy_aware", "build/tune")
TABLES = ("schemes", "operations", "unified_scales", "pass_through")  # of the target device: long, and named by it


@dataclass(frozen=True)
class Step:
    """What a stage cost."""

    name: str
    does: str
    width: float
    seconds: str
    cpu_seconds: str
    memory: str


@dataclass(frozen=True)
class Setting:
    """A key of the configuration that is not at its default."""

    key: str
    value: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Commit:
    """The state of the project's repository; `changed` names files that differ from the commit."""

    sha: str
    date: str
    changed: tuple[str, ...]


def steps(records: Mapping[str, Mapping[str, Any]]) -> Iterator[Step]:
    longest = max((record["seconds"] for record in records.values()), default=0.0) or 1.0
    for name, record in records.items():
        yield Step(
            name,
            STAGES[name],
            round(100 * record["seconds"] / longest, 2),
            f"{record['seconds']:.1f}",
            f"{record['cpu_seconds']:.1f}",
            f"{record['peak_memory_mb']:.0f}",
        )


def settings(config: Config) -> Iterator[Setting]:
    """What is not at its default, and does not follow from something else."""
    implied = completed(dataclasses.replace(Config(), quantization=config.quantization, metric=config.metric))
    defaults = dataclasses.replace(Config(), collect_statistics=implied.collect_statistics, evaluate=implied.evaluate)
    for key, value, default, meaning in _values(config, defaults, ""):
        if value != default and key not in COMPUTED:
            yield Setting(key, _text(value), "required" if default == MISSING else _text(default), meaning)


def _values(section: Any, defaults: Any, prefix: str) -> Iterator[tuple[str, Any, Any, str]]:
    """Key, value, default and meaning of everything in a section of the configuration."""
    for field in dataclasses.fields(section):
        value, default, key = getattr(section, field.name), getattr(defaults, field.name), f"{prefix}{field.name}"
        if prefix in ("tracking.", "sweep.") or (prefix == "target_device." and field.name in TABLES):
            continue
        if dataclasses.is_dataclass(value) and dataclasses.is_dataclass(default):
            yield from _values(value, default, f"{key}.")
        else:
            yield key, value, default, field.metadata["meaning"]


def _text(value: Any) -> str:
    """A value as one would write it in YAML, on one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=dataclasses.asdict)


def shown_configuration(config: Config) -> dict[str, Any]:
    """The whole configuration but for what changes nothing: where it is tracked, which may hold a password, and how it is shipped."""
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in APART}


def params() -> str:
    path = Path("params.yaml")
    return path.read_text(encoding="utf-8") if path.exists() else ""


def identities(
    model: Mapping[str, Any], samples: Mapping[str, Any], kept_budget: BudgetSection | None, tuned: Tuning | None
) -> Iterator[tuple[str, str]]:
    if "source" in model:
        yield "FP32 model", model["source"]
    yield "FP32 model, SHA-256", model["sha256"]
    for kind in ("calibration", "validation"):
        yield f"{plural(samples[kind]['count'], kind + ' sample')}, SHA-256", samples[kind]["sha256"]
    for suffix in ("xml", "bin"):
        path = artifacts.folder("correct_bias") / f"model.{suffix}"
        yield f"INT8 model.{suffix}, SHA-256", artifacts.file_sha256(path)
        if kept_budget:
            yield f"{kept_budget.column} model.{suffix}, SHA-256", artifacts.file_sha256(kept_budget.model.with_suffix(f".{suffix}"))
        if tuned:
            yield f"{tune_section.NAME} model.{suffix}, SHA-256", artifacts.file_sha256(tuned.model.with_suffix(f".{suffix}"))


def versions(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    names = {"device": "measured on", "cores": "CPU cores", "openvino": "OpenVINO", "numpy": "NumPy", "python": "Python"}
    return ((label, str(evaluation[name])) for name, label in names.items() if name in evaluation)


def commit() -> Commit | None:
    """The commit of the project; None outside a repository, or without git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout

    with suppress(OSError, subprocess.CalledProcessError):
        sha, date = git("log", "-1", "--format=%H %cs").split()
        changed = [line[3:] for line in git("status", "--porcelain", "--untracked-files=no", "--", ".").splitlines()]
        if LOCK in map(_name, changed) and _same_result(git("show", f"HEAD:./{LOCK}"), Path(LOCK).read_text(encoding="utf-8")):
            changed = [path for path in changed if _name(path) != LOCK]
        return Commit(sha, date, tuple(changed))
    return None


def _name(path: str) -> str:
    """A path as git writes it, from the root of the repository, without the folders above."""
    return path.rpartition("/")[2]


def _same_result(committed: str, current: str) -> bool:
    """Whether two contents of dvc.lock differ in nothing but the hashes of what holds times, which are never the same twice."""
    return _without_times(committed) == _without_times(current)


def _without_times(lock: str) -> Any:
    content = yaml.load(lock, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    for stage in content["stages"].values():
        for kind in ("deps", "outs"):
            stage[kind] = [entry for entry in stage.get(kind, []) if not entry["path"].startswith(WITH_TIMES)]
    return content
