"""Run the samples beside this file, and compare the outputs with those that were measured. Needs openvino and numpy alone."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import openvino as ov


def main(folder: Path) -> int:
    """0 when the outputs are those measured, but for what another CPU or version of OpenVINO rounds differently."""
    settings = json.loads((folder / "inference.json").read_text(encoding="utf-8"))
    model = ov.Core().compile_model(folder / settings["model"], settings["device"], settings["properties"])
    request, samples, results = model.create_infer_request(), np.load(folder / "samples.npz"), []
    for sample in range(settings["samples"]["count"]):
        request.reset_state()
        request.infer({index: samples[f"{sample}/input/{index}"] for index in range(len(model.inputs))})
        results.append([tensor.data.copy() for tensor in request.output_tensors])

    score = importlib.import_module("score")
    difference, allowed = score.difference(results, samples), settings["samples"]["allowed_difference"]
    print(f"{len(results)} samples: outputs differ by {difference:.2g} from those measured (relative, up to {allowed:.2g} is rounding)")
    for metric in settings["samples"]["metrics"]:
        print(f"{metric['name']} of them: {score.value(metric, results, samples):.4f}, measured {metric['value']:.4f}")
    return int(difference > allowed)


if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent))
