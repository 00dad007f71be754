"""Accuracy Checker's data sets in POT's engine: a folder of images, common preprocessing, accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.pot.result import Translation

CHECKER = {
    "config": "Accuracy Checker's configuration file: translate a copy of this one with its `datasets` in place of `config`",
    "launchers": "Accuracy Checker's way to run a model and read its outputs: here a metric does, see conf/metric",
    "datasets": "Accuracy Checker's data sets: only a first one with a `data_source` is carried over",
    "models": "Accuracy Checker's models: translate a copy of this one with the `datasets` of one model",
}
IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])


def first_dataset(engine: Mapping[str, Any]) -> dict[str, Any] | None:
    """The data set that POT took: the first; None where there is none of images in a folder."""
    datasets = engine.get("datasets")
    first = datasets[0] if isinstance(datasets, list) and datasets else None
    return dict(first) if isinstance(first, dict) and isinstance(first.get("data_source"), str) else None


def translate_dataset(result: Translation, dataset: Mapping[str, Any]) -> None:
    """One data set with its preprocessing and metrics, each carried over or listed."""
    place = "engine.datasets[0]"
    # As OpenCV reads images, and without a size of its own.
    settings: dict[str, Any] = {"path": dataset["data_source"], "color": "BGR", "mean": 0.0, "std": 1.0, "size": None}
    settings |= {"resize": "stretch", "resize_to": None}
    for index, step in enumerate(dataset.get("preprocessing") or []):
        key = f"{place}.preprocessing[{index}]"
        problem = _preprocess(settings, step) if isinstance(step, dict) else "a section with a type is expected here"
        if problem is not None:
            result.leave(key, step, problem)
    _metrics(result, dataset.get("metrics") or [], f"{place}.metrics")
    for name, value in dataset.items():
        if name in ("name", "data_source", "preprocessing", "metrics"):
            continue
        text = "labels are the subfolders' here" if name in ("annotation", "annotation_conversion", "dataset_meta") else "no counterpart"
        result.leave(f"{place}.{name}", value, text)
    result.options["data"] = "image_folder"
    if settings["resize"] == "crop" and settings["size"] is None:
        settings |= {"resize": "stretch", "size": [settings["resize_to"]] * 2, "resize_to": None}
    for name, value in settings.items():
        result.values[f"data.calibration.{name}"] = value
    result.values["data.validation"] = None
    subset = result.values.get("quantization.stat_subset_size")
    if subset is not None:
        result.values["data.calibration_size"] = subset
    result.missing.append("data.calibration.path: the images with a subfolder per class, in the order of the model's outputs")


def _preprocess(settings: dict[str, Any], step: Mapping[str, Any]) -> str | None:
    """Carry one step over into `settings`; why not, where it cannot be."""
    kind = step.get("type")
    size = _size(step)
    if kind == "resize" and size is not None:
        scale = step.get("aspect_ratio_scale")
        if scale == "greater" and size[0] == size[1]:
            settings |= {"resize": "crop", "resize_to": size[0]}
        elif scale is None:
            settings |= {"resize": "stretch", "size": size}
        else:
            return "only aspect_ratio_scale greater has a counterpart: resize crop, or pad"
    elif kind == "crop" and size is not None and settings["resize"] == "crop" and settings["resize_to"] is not None:
        settings["size"] = size
    elif kind in ("bgr_to_rgb", "rgb_to_bgr"):
        settings["color"] = "RGB" if kind == "bgr_to_rgb" else "BGR"
    elif kind == "bgr_to_gray":
        settings["color"] = "GRAY"
    elif kind == "normalization":
        mean, std = step.get("mean", 0.0), step.get("std", 1.0)
        named = {"imagenet": IMAGENET}
        settings["mean"] = named[mean][0] if isinstance(mean, str) and mean in named else mean
        settings["std"] = named[std][1] if isinstance(std, str) and std in named else std
        if isinstance(settings["mean"], str) or isinstance(settings["std"], str):
            settings |= {"mean": 0.0, "std": 1.0}
            return "write its numbers into data.calibration.mean and std"
    else:
        return "no counterpart in data image_folder: see its keys, or write a class of your own"
    return None


def _size(step: Mapping[str, Any]) -> list[int] | None:
    """Height and width of a step."""
    values = [step.get(name, step.get("size")) for name in ("dst_height", "dst_width")]
    return [int(value) for value in values] if all(isinstance(value, int) for value in values) else None


def _metrics(result: Translation, metrics: Any, place: str) -> None:
    """Accuracy, of one kind; the distance to FP32's outputs where there is none."""
    option = "reference_error"
    for index, metric in enumerate(metrics if isinstance(metrics, list) else []):
        top = metric.get("top_k", 1) if isinstance(metric, dict) else None
        if option == "reference_error" and isinstance(metric, dict) and metric.get("type") == "accuracy" and isinstance(top, int):
            option = "accuracy"
            result.values["metric.accuracy.top_k"] = top
        else:
            result.leave(f"{place}[{index}]", metric, "see conf/metric for what there is, or write a class of your own")
    result.options["metric"] = option
