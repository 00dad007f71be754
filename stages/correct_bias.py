"""Shift biases by the mean error that quantized weights cause, and write the corrected INT8 model.

corrections.json says for every layer how far its bias moved, or why it was left alone.
"""

from __future__ import annotations

from typing import Any

from stages import artifacts
from stages.schema import Config
from stages.stage import run

NAME = "correct_bias"


def main(config: Config) -> dict[str, Any]:
    """Write build/correct_bias."""
    from stages.quantization.build import build, corrections_json, save_model
    from stages.quantization.plan import plan_from_json
    from stages.quantization.statistics import load
    from stages.runtime import engine

    model = engine.core().read_model(artifacts.folder("prepare") / "model.xml")
    plan = plan_from_json(artifacts.read_json(artifacts.folder("quantize") / "quantizers.json"))
    statistics = load(artifacts.folder("collect_statistics"))
    corrected, solved = build(model, statistics, plan, config.bias_correction, config.quantization.pot_compatible)
    with artifacts.writing(artifacts.folder(NAME)) as folder:
        save_model(corrected, folder)
        artifacts.write_json(folder / "corrections.json", corrections_json(solved))
    return {"corrected": sum(entry.bias is not None for entry in solved.corrections)}


if __name__ == "__main__":
    run(NAME, main)
