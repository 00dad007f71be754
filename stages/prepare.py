"""Import the model as an FP32 IR, and pin down the calibration and validation samples.

Every sample is read once and checked: against the model's inputs, and its target against the metrics.
"""

from __future__ import annotations

from typing import Any

from stages import artifacts
from stages.config import create
from stages.errors import UserError
from stages.schema import Config
from stages.stage import run

NAME = "prepare"


def main(config: Config) -> dict[str, Any]:
    """Write build/prepare."""
    import openvino as ov

    from stages import samples as sets
    from stages.progress import progress
    from stages.runtime import sources
    from stages.runtime.datasets import Identity, Sample, identity, model_inputs
    from stages.runtime.metrics import Metric

    source = sources.locate(config.model)
    model = sources.read(source, config.model.input_shape)
    inputs = model_inputs(model)
    metrics: list[Metric] = []
    for name, section in config.metric.items():
        metric = create(section, f"metric.{name}")
        if not isinstance(metric, Metric):
            raise UserError(f"metric.{name}: {type(metric).__name__} is not derived from stages.runtime.metrics.Metric")
        metric.bind(model)
        metrics.append(metric)

    def check_target(sample: Sample) -> None:
        for metric in metrics:
            if not metric.uses_reference:
                try:
                    metric.check(sample.target)
                except UserError as error:
                    raise UserError(f"{sample.label}: {error}") from error

    calibration, validation = sets.choose(config, inputs)
    seen: dict[str, list[Identity]] = {}
    for samples in (calibration, validation):
        seen[samples.name] = []
        for sample in progress(samples, f"{NAME}: {samples.name}", total=len(samples)):
            if samples is validation:
                check_target(sample)
            seen[samples.name].append(identity(sample))
    known = {own.inputs for own in seen[calibration.name]}
    shared = sum(own.inputs in known for own in seen[validation.name])
    if shared and not config.data.allow_overlap:
        raise UserError(
            f"{shared} of {len(validation)} validation samples are also calibration samples, which makes the accuracy look better "
            "than it is: use other samples, or set data.allow_overlap"
        )

    with artifacts.writing(artifacts.folder(NAME)) as folder:
        # Unlike ov.serialize, this leaves out a record of fused names, which holds the numbers of this process.
        ov.save_model(model, folder / "model.xml", compress_to_fp16=False)
        artifacts.write_json(
            folder / "model.json",
            {
                "name": config.model.name,
                "source": source.origin,
                "sha256": source.sha256,
                "framework": source.framework,
                "files": source.files,
                "inputs": [entry.to_json() for entry in inputs],
                "outputs": sources.describe_outputs(model),
            },
        )
        described = {samples.name: sets.describe(samples, seen[samples.name]) for samples in (calibration, validation)}
        artifacts.write_json(folder / "dataset.json", {**described, "shared": shared})
    return {"operations": len(model.get_ops()), "calibration": len(calibration), "validation": len(validation)}


if __name__ == "__main__":
    run(NAME, main)
