"""Import the model as an FP32 IR, and pin down the calibration and validation samples.

Every sample is read once and checked: against the model's inputs, and its target against the metrics.

Examples:
    dvc repro prepare                # with the configuration before it
    dvc repro --force prepare        # read everything again
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common import artifacts
from stages.common.errors import UserError
from stages.common.user_code import user_code
from stages.configuration.loading import create
from stages.configuration.schema import Config
from stages.stage import run

if TYPE_CHECKING:
    import openvino as ov

    from stages.runtime.datasets import ModelInput, Sample
    from stages.runtime.metrics import Metric

NAME = "prepare"


def main(config: Config) -> dict[str, Any]:
    """Write build/prepare."""
    from stages.common.progress import Steps

    with Steps(NAME) as begin:
        return _prepare(config, begin)


def _prepare(config: Config, begin: Callable[[str], None]) -> dict[str, Any]:
    """begin: is told what is done next."""
    begin("importing OpenVINO")
    import openvino as ov

    from stages.common.progress import progress
    from stages.common.reads import opened_files, users_files
    from stages.runtime import samples as sets
    from stages.runtime import sources
    from stages.runtime.datasets import identity, model_inputs

    begin(f"looking for the model {config.model.name}")
    source = sources.locate(config.model)
    begin(f"reading the model {config.model.name}")
    model = sources.read(source, config.model.input_shape)
    inputs = model_inputs(model)
    metrics = _metrics(config, model)

    begin(f"opening the data set {config.data.name}")
    with opened_files() as opened:
        calibration, validation = sets.choose(config, inputs)
        begin(f"reading and checking {len(calibration)} calibration and {len(validation)} validation samples")
        shapes: set[tuple[tuple[str, tuple[int, ...]], ...]] = set()
        calibrating = []
        for sample in progress(calibration, f"{NAME}: calibration", len(calibration)):
            calibrating.append(identity(sample))
            shapes.add(_shapes(sample))
        validating = []
        for sample in progress(validation, f"{NAME}: validation", len(validation)):
            _check_target(metrics, sample.target, sample.label)
            validating.append(identity(sample))
            shapes.add(_shapes(sample))
    datasets = {"data.calibration": calibration.dataset, "data.validation": validation.dataset}
    if validation.dataset is calibration.dataset:
        del datasets["data.validation"]
    opened.update(str(path.absolute()) for dataset in datasets.values() for path in sets.declared_files(dataset))
    notes = [f"{key}: {note}" for key, dataset in datasets.items() for note in sets.notes_of(dataset)]
    notes += sets.label_notes(calibrating, validating)
    notes += sets.state_notes(bool(model.get_sinks()), config.data.streams)
    for note in notes:
        print(f"{NAME}: {note}", file=sys.stderr)
    known = {own.inputs for own in calibrating}
    shared = sum(own.inputs in known for own in validating)
    if shared and not config.data.allow_overlap:
        raise UserError(
            f"{shared} of {len(validation)} validation samples are also calibration samples, which makes the accuracy look better "
            "than it is: use other samples, or set data.allow_overlap"
        )

    described_model = {
        "name": config.model.name,
        "source": source.origin,
        "sha256": source.sha256,
        "framework": source.framework,
        "files": source.files,
        "inputs": [entry.to_json() for entry in inputs],
        "outputs": sources.describe_outputs(model),
    }
    described_data = {
        "calibration": sets.describe(calibration, calibrating),
        "validation": sets.describe(validation, validating),
        "shared": shared,
        **_one_shape(inputs, shapes),
    }
    begin("writing the model and the list of samples")
    with artifacts.writing(artifacts.folder(NAME)) as folder:
        # Unlike ov.serialize, this leaves out a record of fused names, which holds the numbers of this process.
        ov.save_model(model, folder / "model.xml", compress_to_fp16=False)
        artifacts.write_json(folder / "model.json", described_model)
        artifacts.write_json(folder / "dataset.json", described_data)
    counts = {"operations": len(model.get_ops()), "calibration": len(calibration), "validation": len(validation)}
    watched = _watched(config)
    files = [_seen(path) for path in users_files(opened, Path.cwd()) if not _is_watched(path, watched)]
    return {**counts, "files": files, "notes": notes}


def _watched(config: Config) -> set[Path]:
    """The files and folders of which the configuration has the hash: an edit of them re-runs this stage."""
    return {Path(name).absolute() for name in [*config.files.model, *config.files.data, *config.files.metric, *config.user_code]}


def _is_watched(path: Path, watched: set[Path]) -> bool:
    return path in watched or not watched.isdisjoint(path.parents)


def _shapes(sample: Sample) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, array.shape) for name, array in sample.inputs.items())


def _one_shape(inputs: Sequence[ModelInput], shapes: Collection[tuple[tuple[str, tuple[int, ...]], ...]]) -> dict[str, Any]:
    """The one shape that all samples have of an input that the model leaves open: it might as well be fixed."""
    if len(shapes) != 1:
        return {}
    given = dict(next(iter(shapes)))
    found = {entry.name: list(given[entry.name]) for entry in inputs if entry.shape is None or -1 in entry.shape}
    return {"one_shape": found} if found else {}


def _seen(path: Path) -> dict[str, Any]:
    """A file that a data set has opened without its arguments naming it; `track` looks whether it still is what it was."""
    status = path.stat()
    name = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return {"path": str(name), "size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": artifacts.file_sha256(path)}


def _metrics(config: Config, model: ov.Model) -> list[Metric]:
    """The configured metrics, bound to the model."""
    from stages.runtime.metrics import Metric

    metrics = []
    for name, section in config.metric.items():
        metric = create(section, f"metric.{name}")
        if not isinstance(metric, Metric):
            raise UserError(f"metric.{name}: {type(metric).__name__} is not derived from stages.runtime.metrics.Metric")
        if not isinstance(metric.higher_is_better, bool):
            raise UserError(f"metric.{name}: higher_is_better is {metric.higher_is_better!r}, but must be True or False")
        with user_code(f"metric.{name}: bind of {type(metric).__name__}"):
            metric.bind(model)
        metrics.append(metric)
    return metrics


def _check_target(metrics: list[Metric], target: Any, label: str) -> None:
    for metric in metrics:
        if not metric.uses_reference:
            with user_code(f"{label}: check of {type(metric).__name__}"):
                try:
                    metric.check(target)
                except UserError as error:
                    raise UserError(f"{label}: {error}") from error


if __name__ == "__main__":
    run(NAME, main)
