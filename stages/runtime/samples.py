"""Which samples calibrate and which validate: chosen once by `prepare`, then read in that order by every stage after it."""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from stages.common import artifacts
from stages.common.errors import UserError
from stages.common.user_code import offered, user_code
from stages.configuration.loading import create
from stages.configuration.schema import Config
from stages.runtime.datasets import Dataset, Identity, ImageFolder, ModelInput, Samples

CALIBRATION, VALIDATION = "calibration", "validation"
DEFAULT_CALIBRATION_SIZE = 300


def choose(config: Config, inputs: Sequence[ModelInput]) -> tuple[Samples, Samples]:
    """The calibration and the validation samples that the configuration asks for.

    Without a validation set both come from `data.calibration` and are disjoint, unless too few are left and
    `data.allow_overlap` is set.

    Raises:
        UserError: a set is empty, or smaller than what is asked of it.
    """
    data = config.data
    calibration = _dataset(config, CALIBRATION)
    order = _order(len(calibration), config, stream=0)
    size = data.calibration_size
    if data.validation is not None:
        chosen = _first(order, size, "data.calibration_size", "data.calibration")
        validation = _dataset(config, VALIDATION)
        _check_classes(calibration, validation)
        others = _first(_order(len(validation), config, stream=1), data.validation_size, "data.validation_size", "data.validation")
        return _bound(config, calibration, inputs, chosen, CALIBRATION), _bound(config, validation, inputs, others, VALIDATION)
    if size is None:
        size = min(DEFAULT_CALIBRATION_SIZE, len(order))
    chosen = _first(order, size, "data.calibration_size", "data.calibration")
    left = order[size:]
    wanted = data.validation_size or len(left) or 1
    if len(left) < wanted:
        if not data.allow_overlap:
            raise UserError(
                f"calibration takes {size} of the {len(order)} samples of data.calibration, which leaves {len(left)} for validation: "
                "lower data.calibration_size or data.validation_size, give data.validation, or set data.allow_overlap"
            )
        # Unused samples first; then the calibration samples serve twice.
        left = _first([*left, *chosen], data.validation_size, "data.validation_size", "data.calibration")
    left = left[: data.validation_size]
    return _bound(config, calibration, inputs, chosen, CALIBRATION), _bound(config, calibration, inputs, left, VALIDATION)


def _bound(config: Config, dataset: Dataset, inputs: Sequence[ModelInput], indices: Sequence[int], name: str) -> Samples:
    streams = [_stream(dataset, index, name) for index in indices] if config.data.streams else None
    return Samples(dataset, inputs, indices, name, streams=streams)


def _stream(dataset: Dataset, index: int, name: str) -> str:
    """What a data set calls the stream that a sample is a part of; without a method `stream` there is one."""
    stream = offered(dataset, "stream", index)
    if stream is None:
        return ""
    with user_code(f"{name} sample {index}: stream({index}) of {type(dataset).__name__}"):
        return str(stream(index))


def declared_files(dataset: Dataset) -> list[Path]:
    """The files that a data set says it reads: by a method or an attribute `files`, for what it opens outside of Python."""
    method, attribute = offered(dataset, "files"), getattr(dataset, "files", None)
    if method is not None:
        with user_code(f"files of {type(dataset).__name__}"):
            attribute = list(method())
    files = list(attribute) if isinstance(attribute, (list, tuple, set, frozenset)) else []
    return [Path(file) for file in files if isinstance(file, (str, os.PathLike)) and Path(file).is_file()]


def notes_of(dataset: Dataset) -> list[str]:
    """What a data set has to say about itself, e.g. which files it left out, where it has a method `notes`."""
    method = offered(dataset, "notes")
    if method is None:
        return []
    with user_code(f"notes of {type(dataset).__name__}"):
        return [str(note) for note in method()]


def state_notes(stateful: bool, streams: bool) -> list[str]:
    """What a user should know of a model that keeps a state from one inference to the next, or of one that does not."""
    if stateful and not streams:
        return [
            "the model keeps a state, with whose initial value every sample begins, so that its range is what one sample makes of it:"
            " data.streams: true lets it go on in samples' order"
        ]
    return ["data.streams changes nothing: the model keeps no state"] if streams and not stateful else []


def label_notes(calibration: Sequence[Identity], validation: Sequence[Identity]) -> list[str]:
    """What is odd about the labels, as it is where samples are sorted by class and the first ones are taken."""
    targets = [own.target for own in validation if own.target is not None]
    kinds = set(targets)
    advice = "where samples are sorted by class, set data.shuffle: true"
    if len(kinds) == 1 and len(targets) > 1:
        return [f"all {len(targets)} validation samples have the same label, which says little about a model: {advice}"]
    others = {own.target for own in calibration if own.target is not None}
    classes = len(kinds) <= min(len(targets) / 2, len(calibration))  # texts and boxes differ from sample to sample
    if others and kinds and classes and len(kinds & others) < len(kinds) / 2:
        shared = len(kinds & others) or "none"
        return [f"calibration samples have {shared} of the {len(kinds)} labels that validation samples have: {advice}"]
    return []


def describe(samples: Samples, identities: Sequence[Identity]) -> dict[str, Any]:
    """A chosen set for dataset.json: which samples, in which order, and what they are."""
    digest = hashlib.sha256()
    entries = []
    for position, (index, own) in enumerate(zip(samples.indices, identities, strict=True)):
        streamed = {} if samples.streams is None else {"stream": samples.streams[position]}
        digest.update(f"{own.inputs} {own.target}{''.join(f' stream {name}' for name in streamed.values())}\n".encode())
        label = samples.own_label(position)
        named = {} if label is None else {"label": label}
        target = {} if own.target is None else {"target": own.target}
        entries.append({"index": index, **named, "sha256": own.inputs, **target, **streamed})
    return {"count": len(entries), "sha256": digest.hexdigest(), "samples": entries}


def calibration_samples(config: Config) -> Samples:
    """The prepared calibration samples, or the first `quantization.stat_subset_size` of them.

    Raises:
        UserError: there are fewer than that. Reading one raises it when the sample is not what it was in `prepare`.
    """
    samples = _prepared(config, CALIBRATION)
    size = config.quantization.stat_subset_size
    if size is not None and size > len(samples):
        raise UserError(f"quantization.stat_subset_size is {size}, but there are {len(samples)} calibration samples")
    return samples[:size]


def validation_samples(config: Config) -> Samples:
    """The prepared validation samples.

    Raises:
        UserError: (on reading) a sample is not what it was in `prepare`.
    """
    return _prepared(config, VALIDATION)


def _prepared(config: Config, name: str) -> Samples:
    folder = artifacts.folder("prepare")
    entries = artifacts.read_json(folder / "dataset.json")[name]["samples"]
    inputs = [ModelInput.from_json(entry) for entry in artifacts.read_json(folder / "model.json")["inputs"]]
    dataset = _dataset(config, name if name == CALIBRATION or config.data.validation is not None else CALIBRATION)
    indices = [entry["index"] for entry in entries]
    if len(dataset) <= max(indices):
        raise UserError(f"data.{name} now has {len(dataset)} samples, fewer than in the stage `prepare`: run `dvc repro --force prepare`")
    expected = [Identity(entry["sha256"], entry.get("target")) for entry in entries]
    streams = [entry["stream"] for entry in entries] if config.data.streams else None
    return Samples(dataset, inputs, indices, name, expected, streams)


def _dataset(config: Config, name: str) -> Dataset:
    section = config.data.calibration if name == CALIBRATION else config.data.validation
    dataset = create(section or {}, f"data.{name}")
    if not (hasattr(type(dataset), "__len__") and hasattr(type(dataset), "__getitem__")):
        raise UserError(f"data.{name}: {type(dataset).__name__} is no data set; it needs __len__ and __getitem__(index)")
    with user_code(f"data.{name}: __len__ of {type(dataset).__name__}"):
        count = type(dataset).__len__(dataset)
    if isinstance(count, bool) or not isinstance(count, SupportsIndex) or operator.index(count) < 0:
        raise UserError(f"data.{name}: __len__ of {type(dataset).__name__} gives {count!r}, but must give the number of samples")
    if operator.index(count) == 0:
        raise UserError(f"data.{name}: the data set has no samples")
    return dataset


def _check_classes(calibration: Dataset, validation: Dataset) -> None:
    """Refuse two folders whose subfolders would give the same class different numbers."""
    if not (isinstance(calibration, ImageFolder) and isinstance(validation, ImageFolder)):
        return
    one, other = calibration.classes, validation.classes
    if one and other and one != other:
        different = sorted(set(one) ^ set(other)) or [next(a for a, b in zip(one, other, strict=True) if a != b)]
        raise UserError(
            f"data.calibration has {len(one)} classes and data.validation {len(other)}, which differ in {', '.join(different[:3])}, so one "
            "class would have two numbers: list all of them in data.calibration.classes, in the order of the model's numbers"
        )


def _order(count: int, config: Config, stream: int) -> list[int]:
    """The order in which samples are taken."""
    if not config.data.shuffle:
        return list(range(count))
    return [int(index) for index in np.random.default_rng([stream, config.seed]).permutation(count)]


def _first(order: Sequence[int], size: int | None, key: str, name: str) -> list[int]:
    if size is not None and size > len(order):
        raise UserError(f"{key} is {size}, but {name} has {len(order)} samples")
    return list(order[:size])
