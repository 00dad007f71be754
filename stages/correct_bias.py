"""Shift biases by the mean error that quantized weights cause, tune layers if asked to, and write the corrected INT8 model.

corrections.json says by which algorithm, and for every layer how far its bias moved, or why it was left alone; the same for
layer-wise tuning. tuned.npz holds what it found, for searches that build other models from it.

Examples:
    dvc repro correct_bias           # the INT8 model, without measuring it
    python -m stages.correct_bias    # this stage alone, from what is in build/
"""

from __future__ import annotations

from typing import Any

from stages.common import artifacts
from stages.configuration.schema import Config
from stages.stage import run

NAME = "correct_bias"


def main(config: Config) -> dict[str, Any]:
    """Write build/correct_bias."""
    from stages.common.progress import Progress
    from stages.quantization.build import build, corrections_json, save_model
    from stages.quantization.model.graph import read_graph
    from stages.quantization.placement.plan import plan_from_json
    from stages.quantization.refinement.accurate_bias import accurate_corrections, used_samples
    from stages.quantization.refinement.layerwise import tune_layers
    from stages.quantization.solution.biases import Correction
    from stages.quantization.solution.solve import correctable_layers
    from stages.quantization.solution.tuned import save_tuned
    from stages.quantization.statistics.store import load
    from stages.runtime import engine
    from stages.runtime.samples import calibration_samples

    model = engine.read_artifact(artifacts.folder("prepare"))
    plan = plan_from_json(artifacts.read_json(artifacts.folder("quantize") / "quantizers.json"))
    statistics = load(artifacts.folder("collect_statistics"))
    correction, pot_compatible = config.bias_correction, config.quantization.pot_compatible
    corrections: list[Correction] = []
    more: dict[str, Any] = {}
    how: dict[str, Any] = {"algorithm": "FastBiasCorrection" if correction.enabled else None}
    if correction.enabled and not correction.use_fast_bias:
        samples = calibration_samples(config)
        how = {"algorithm": "BiasCorrection", "samples": used_samples(len(samples))}
        layers = correctable_layers(read_graph(model), plan, correction.apply_for_all_nodes)
        with Progress(NAME, len(layers), "layers") as advance:
            corrections = accurate_corrections(
                model,
                statistics,
                plan,
                correction,
                samples,
                pot_compatible=pot_compatible,
                settings=config.correction_engine,
                advance=advance,
            )
    tuned = None
    tuning = config.layerwise_tuning
    if tuning.use_layerwise_tuning:
        with Progress(f"{NAME}: layer-wise tuning", 100, "%") as advance:
            tuned, record = tune_layers(
                model,
                statistics,
                plan,
                tuning,
                calibration_samples(config),
                bias_correction=correction,
                pot_compatible=pot_compatible,
                corrections=corrections,
                settings=config.correction_engine,
                advance=advance,
            )
        more["layerwise_tuning"] = record.to_json()
    corrected, solved = build(model, statistics, plan, correction, pot_compatible, corrections, tuned)
    with artifacts.writing(artifacts.folder(NAME)) as folder:
        artifacts.write_inputs(folder, "quantize")
        save_model(corrected, folder)
        artifacts.write_json(folder / "corrections.json", how | corrections_json(solved) | more)
        if tuned is not None:
            save_tuned(tuned, folder)
    return {"corrected": sum(entry.bias is not None for entry in solved.corrections), "tuned": len(tuned.layers) if tuned else 0}


if __name__ == "__main__":
    run(NAME, main)
