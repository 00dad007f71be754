"""Align channels, place quantizers, compute their ranges, and write the INT8 model without bias correction.

quantizers.json says for every layer how it is quantized, or why it stays in floating point.

Examples:
    dvc repro quantize               # with everything before it
    python -m stages.quantize        # this stage alone, from what is in build/
"""

from __future__ import annotations

from typing import Any

from stages.common import artifacts
from stages.configuration.schema import Config
from stages.stage import run

NAME = "quantize"


def main(config: Config) -> dict[str, Any]:
    """Write build/quantize."""
    from stages.configuration.target_device import read_target
    from stages.quantization.build import build, quantizers_json, save_model
    from stages.quantization.model.graph import read_graph
    from stages.quantization.planning import make_plan, require_something_to_quantize
    from stages.quantization.statistics.masks import warnings
    from stages.quantization.statistics.store import load
    from stages.runtime import engine

    model = engine.read_artifact(artifacts.folder("prepare"))
    statistics = load(artifacts.folder("collect_statistics"))
    graph = read_graph(model)
    plan = make_plan(graph, read_target(config.target_device), config.quantization, statistics)
    require_something_to_quantize(plan)
    quantized, solved = build(model, statistics, plan, pot_compatible=config.quantization.pot_compatible)
    with artifacts.writing(artifacts.folder(NAME)) as folder:
        artifacts.write_inputs(folder, "collect_statistics")
        save_model(quantized, folder)
        remarks = warnings(graph, plan, config.quantization.model_type)
        data = quantizers_json(plan, solved, config.quantization.preset, config.target_device.name, remarks)
        artifacts.write_json(folder / "quantizers.json", data)
    return {"quantizers": len(plan.quantizers)}


if __name__ == "__main__":
    run(NAME, main)
