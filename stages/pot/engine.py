"""POT's sections `model` and `engine`: the model, how it is run, and the samples of the simplified engine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from stages.pot.checker import CHECKER, first_dataset, translate_dataset
from stages.pot.result import NEEDLESS, UNKNOWN, Translation

MODEL = {
    "model_name": "model.name",
    "model": "model.path",
    "weights": "the weights are read from the .bin file beside the .xml",
    "cascade": "one model at a time: make a project of each model of a cascade",
}
_CHECKER = "is of Accuracy Checker, which the engine `simplified` does not use"
ENGINE = {
    "device": "engine.device",
    "eval_requests_number": "engine.requests",
    "stat_requests_number": NEEDLESS + "engine.requests serves statistics and evaluation alike, and is eval_requests_number here",
}


def translate_model(result: Translation, model: Mapping[str, Any]) -> None:
    beside = str(model.get("model", "")).removesuffix(".xml") + ".bin"
    result.by_table(model, MODEL, "model", handled=("weights",) if model.get("weights") == beside else ())
    if "model.path" not in result.values:
        result.missing.append("model.path: the model's file")


def translate_engine(result: Translation, engine: Mapping[str, Any], root: Path) -> None:
    kind = engine.get("type", "accuracy_checker")
    if "eval_requests_number" not in engine and "stat_requests_number" in engine:
        engine = {**engine, "eval_requests_number": engine["stat_requests_number"]}
        engine.pop("stat_requests_number")
    if kind == "simplified":
        table = {**ENGINE, **dict.fromkeys(CHECKER, _CHECKER)}
        result.by_table(engine, table, "engine", handled=("type", "data_source", "layout", "central_fraction"))
        _images(result, engine, root)
        return
    result.options |= {"data": "custom", "metric": "reference_error"}
    if kind != "accuracy_checker":
        result.leave("engine.type", kind, "the engines are accuracy_checker and simplified")
    known = {name: value for name, value in engine.items() if name in ENGINE}
    result.by_table(known, ENGINE, "engine")
    dataset = first_dataset(engine) if kind == "accuracy_checker" else None
    for name, value in engine.items():
        if name not in (*ENGINE, "type") and not (name == "datasets" and dataset):
            result.leave(f"engine.{name}", value, CHECKER.get(name, UNKNOWN))
    if dataset is not None:
        translate_dataset(result, dataset)
        return
    result.missing.append("data: your samples (README, Your own model)")
    result.missing.append(
        "metric: your metric; until then reference_error, the distance to the FP32 model's outputs, which needs no labels"
    )


def _images(result: Translation, engine: Mapping[str, Any], root: Path) -> None:
    """The simplified engine: a folder of images without labels, as OpenCV reads them (BGR), scaled to the model's input."""
    result.options |= {"data": "image_folder", "metric": "reference_error"}
    layout = str(engine.get("layout", "NCHW")).upper()
    settings: dict[str, Any] = {"path": engine.get("data_source"), "color": "BGR", "mean": 0.0, "std": 1.0, "layout": layout}
    pattern = Path(str(settings["path"])).name if settings["path"] is not None else ""
    if any(sign in pattern for sign in "*?["):
        settings["path"] = Path(str(settings["path"])).parent.as_posix()
        if re.fullmatch(r"\*\.\w+", pattern):
            settings["extensions"] = [pattern[1:]]
            result.change("engine.data_source", engine["data_source"], f"data.calibration.path with extensions [{pattern[1:]}]")
        else:
            result.leave("engine.data_source", engine["data_source"], "no pattern but *.ending: put the images into a folder of their own")
    settings |= {"resize": "stretch", "resize_to": None, "size": None}
    path = result.values.get("model.path")
    shape = _input_shape(root / path) if isinstance(path, str) else None
    if layout not in ("NCHW", "NHWC"):
        result.leave("engine.layout", engine["layout"], "one of NCHW and NHWC is expected here")
        settings["layout"] = "NCHW"
    if settings["path"] is None:
        settings.pop("path")
        result.missing.append("data.calibration.path: the folder of images")
    if shape and len(shape) == 4:
        settings["size"] = shape[2:] if settings["layout"] == "NCHW" else shape[1:3]
    else:
        settings.pop("size")
        result.missing.append("data.calibration.size: [height, width] of the model's input, which could not be read from the model")
    fraction = engine.get("central_fraction")
    if fraction is not None:
        result.leave("engine.central_fraction", fraction, "see data.calibration.resize: crop and resize_to, which cut out the centre")
    for name, value in settings.items():
        result.values[f"data.calibration.{name}"] = value
    result.values["data.validation"] = None
    subset = result.values.get("quantization.stat_subset_size")
    if subset is not None:
        result.values["data.calibration_size"] = subset
    result.values["data.allow_overlap"] = True
    text = (
        "data image_folder, without labels: the metric is reference_error, the distance to the FP32 model's outputs, and where the folder"
        " has no more images than calibration takes, it also validates (data.allow_overlap)"
    )
    result.change("engine.type", "simplified", text)


def _input_shape(path: Path) -> list[int] | None:
    """The fixed shape of the only input of an IR; None where it has none that is known."""
    try:
        layers = ElementTree.parse(path).getroot().iterfind("layers/layer[@type='Parameter']/data")
    except (OSError, ElementTree.ParseError):
        return None
    shapes = [data.get("shape", "") for data in layers]
    if len(shapes) != 1 or not re.fullmatch(r"\d+(,\s*\d+)*", shapes[0]):
        return None
    return [int(size) for size in shapes[0].split(",")]
