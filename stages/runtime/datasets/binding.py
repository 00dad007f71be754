"""Data sets, and samples checked against the model they are for.

A data set is any object with `__len__` and `__getitem__(index)`, where an item is one of

    array                       the only input of the model
    {"input name": array}       inputs by name
    (either of these, target)   with what the metrics compare with: a class, a text, a class map, ...
    Sample(inputs, target)

Arrays carry the batch dimension, of size 1. An optional `label(index)` says what to call a sample in messages, e.g. its file.
A data set of your own is such a class, named by `_target_` in conf/data/.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import openvino as ov
from PIL import Image, UnidentifiedImageError

from stages.common.errors import UserError

IMAGE_EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


# OpenVINO's element types that NumPy has, too.
TYPES: dict[str, np.dtype] = {
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "i8": np.dtype(np.int8),
    "i16": np.dtype(np.int16),
    "i32": np.dtype(np.int32),
    "i64": np.dtype(np.int64),
    "u8": np.dtype(np.uint8),
    "u16": np.dtype(np.uint16),
    "u32": np.dtype(np.uint32),
    "u64": np.dtype(np.uint64),
    "boolean": np.dtype(np.bool_),
}


class Sample(NamedTuple):
    """One sample: arrays [1, ...] by input name, what the metrics compare with (None: unlabelled), and its name in messages."""

    inputs: dict[str, np.ndarray]
    target: Any = None
    label: str = ""


class Dataset(Protocol):
    """What a data set must offer; `label(index) -> str` is optional."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


# ------------------------------------------------------------------------------------------------ data sets


class Arrays:
    """Samples from an .npz file: one array [N, ...] per model input, and optionally one of targets [N, ...]."""

    def __init__(self, path: str, inputs: dict[str, str] | None = None, targets: str | None = "y", add_batch: bool = True) -> None:
        """
        Args:
            path: the .npz file.
            inputs: input name of the model -> array name in the file. By default every array but the targets is the input of
                the same name; a single array fits the only input of a model whatever it is called.
            targets: name of the array of targets; none if the file has no such array.
            add_batch: arrays are [N, ...] and each sample gets a batch dimension; false: they are [N, 1, ...] and have it.

        Raises:
            UserError: the file is missing or corrupt, lacks an array, or its arrays differ in length.
        """
        if not Path(path).is_file():
            raise UserError(f"data file {path} does not exist")
        try:
            with open(path, "rb") as file:
                loaded = np.load(file, allow_pickle=False)
                if not isinstance(loaded, np.lib.npyio.NpzFile):
                    raise ValueError("it holds a single unnamed array")
                arrays = {name: loaded[name] for name in loaded.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"cannot read {path} as .npz: {error}") from error
        self.path = path
        self.add_batch = add_batch
        self.targets = arrays.pop(targets, None) if targets is not None else None
        wanted = inputs if inputs is not None else {name: name for name in arrays}
        missing = sorted(set(wanted.values()) - set(arrays))
        if missing or not wanted:
            raise UserError(f"{path} has no array {', '.join(missing) or 'for an input'}; its arrays are: {', '.join(arrays) or 'none'}")
        # One array of any name is the only input's.
        names = {"": next(iter(wanted))} if inputs is None and len(wanted) == 1 else wanted
        self.inputs = {name: arrays[source] for name, source in names.items()}
        lengths = {source: arrays[source].shape[:1] for source in wanted.values()}
        if self.targets is not None:
            lengths[targets or ""] = self.targets.shape[:1]
        if len(set(lengths.values())) > 1 or () in lengths.values():
            raise UserError(
                f"the arrays of {path} differ in length: {', '.join(f'{k} has {v[0] if v else 0}' for k, v in lengths.items())}"
            )

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def __getitem__(self, index: int) -> Sample:
        rows = {name: array[index : index + 1] if self.add_batch else array[index] for name, array in self.inputs.items()}
        target = None if self.targets is None else self.targets[index]
        return Sample(rows, target.item() if isinstance(target, np.generic) else target)


class ImageFolder:
    """Images in a folder. Each subfolder is a class, in sorted order from 0; images directly in the folder are unlabelled."""

    def __init__(
        self,
        path: str,
        size: Sequence[int] | None = None,
        resize: str = "stretch",
        resize_to: int | None = None,
        color: str = "RGB",
        scale: float | Sequence[float] = 1.0,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        layout: str = "NCHW",
        interpolation: str = "bilinear",
        pad_value: int = 0,
        extensions: Sequence[str] = IMAGE_EXTENSIONS,
    ) -> None:
        """
        A sample is (pixels * scale - mean) / std, pixels being 0 to 255.

        Args:
            size: [height, width] of the model's input; none keeps each image's own.
            resize: how an image gets there. "stretch": both sides independently. "crop": scaled until the shorter side is
                `resize_to` (by default until it just covers the size), then the centre is cut out. "pad": scaled until it
                fits, then padded at the right and bottom with `pad_value`.
            color: RGB, BGR or GRAY.
            scale, mean, std: one number, or one per channel in the order of `color`.
            layout: NCHW or NHWC.
            interpolation: nearest, bilinear, bicubic or lanczos.

        Raises:
            UserError: the folder is missing or has no images, or an argument is not one of those above.
        """
        for name, value, allowed in (
            ("resize", resize, ("stretch", "crop", "pad")),
            ("color", color, ("RGB", "BGR", "GRAY")),
            ("layout", layout, ("NCHW", "NHWC")),
            ("interpolation", interpolation, ("nearest", "bilinear", "bicubic", "lanczos")),
        ):
            if value not in allowed:
                raise UserError(f"ImageFolder: {name} is {value!r}, but must be one of {', '.join(allowed)}")
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise UserError(f"ImageFolder: size is {list(size)}, but must be [height, width]")
        if size is None and resize_to is not None:
            raise UserError("ImageFolder: resize_to needs size")
        if size is not None and resize_to is not None and (resize != "crop" or resize_to < max(size)):
            raise UserError(f"ImageFolder: resize_to {resize_to} is for resize: crop, and not smaller than size {list(size)}")
        root = Path(path)
        if not root.is_dir():
            raise UserError(f"image folder {path} does not exist")
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.resize = resize
        self.resize_to = resize_to
        self.color = color
        channels = 1 if color == "GRAY" else 3
        self.scale, self.mean, self.std = (
            _per_channel(name, value, channels) for name, value in (("scale", scale), ("mean", mean), ("std", std))
        )
        self.layout = layout
        self.interpolation = Image.Resampling[interpolation.upper()]
        self.pad_value = pad_value
        suffixes = {suffix.lower() for suffix in extensions}
        self.classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        self.files: list[tuple[Path, int | None]] = [(file, None) for file in _images(root, suffixes)]
        for index, name in enumerate(self.classes):
            self.files += [(file, index) for file in _images(root / name, suffixes)]
        if not self.files:
            raise UserError(f"image folder {path} has no images ({', '.join(sorted(suffixes))})")
        if len({label is None for _, label in self.files}) > 1:
            raise UserError(f"image folder {path} has images both directly in it and in subfolders: label all or none")

    def __len__(self) -> int:
        return len(self.files)

    def label(self, index: int) -> str:
        return str(self.files[index][0])

    def __getitem__(self, index: int) -> Sample:
        file, target = self.files[index]
        try:
            with Image.open(file) as image:
                pixels = np.asarray(self._resized(image.convert("L" if self.color == "GRAY" else "RGB")), dtype=np.float32)
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"cannot read image {file}: {error}") from error
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if self.color == "BGR":
            pixels = pixels[:, :, ::-1]
        values = (pixels * self.scale - self.mean) / self.std
        return Sample({"": np.ascontiguousarray(values.transpose(2, 0, 1) if self.layout == "NCHW" else values)[None]}, target)

    def _resized(self, image: Image.Image) -> Image.Image:
        if self.size is None:
            return image
        height, width = self.size
        if self.resize == "stretch":
            return image.resize((width, height), self.interpolation)
        if self.resize == "pad":
            scaled = image.resize(fitted(image.size, self.size), self.interpolation)
            canvas = Image.new(image.mode, (width, height), (self.pad_value,) * 3 if image.mode == "RGB" else self.pad_value)
            canvas.paste(scaled, (0, 0))
            return canvas
        ratio = max(width / image.width, height / image.height) if self.resize_to is None else self.resize_to / min(image.size)
        scaled = image.resize(_scaled(image.size, ratio), self.interpolation)
        left, top = (scaled.width - width) // 2, (scaled.height - height) // 2
        return scaled.crop((left, top, left + width, top + height))


def _images(folder: Path, suffixes: set[str]) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and file.suffix.lower() in suffixes)


def fitted(image: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of an image of (width, height) that is scaled to fit into `size` (height, width)."""
    return _scaled(image, min(size[1] / image[0], size[0] / image[1]))


def _scaled(image: tuple[int, int], ratio: float) -> tuple[int, int]:
    return max(1, round(image[0] * ratio)), max(1, round(image[1] * ratio))


def _per_channel(name: str, value: float | Sequence[float], channels: int) -> np.ndarray:
    values = np.atleast_1d(np.asarray(value, dtype=np.float32))
    if values.shape not in ((1,), (channels,)):
        raise UserError(f"ImageFolder: {name} must be one number or {channels}, not {values.size}")
    return values


# ------------------------------------------------------------------------------------------------ samples of a model


@dataclass(frozen=True)
class ModelInput:
    """What a model expects of one input; a size of -1 is dynamic."""

    name: str
    aliases: tuple[str, ...]  # all its names, sorted
    shape: tuple[int, ...] | None  # None: not even the rank is known
    dtype: np.dtype

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "aliases": self.aliases, "shape": self.shape, "type": self.dtype.name}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelInput:
        shape = None if value["shape"] is None else tuple(value["shape"])
        return cls(value["name"], tuple(value["aliases"]), shape, np.dtype(value["type"]))


def model_inputs(model: ov.Model) -> list[ModelInput]:
    """The inputs of a model in its own order, named by their operations; tensor names are accepted as aliases."""
    inputs = []
    for port in model.inputs:
        shape = port.get_partial_shape()
        sizes = None if shape.rank.is_dynamic else tuple(size.get_length() if size.is_static else -1 for size in shape)
        name = port.get_node().get_friendly_name()
        kind = port.get_element_type().get_type_name()
        if kind not in TYPES:
            raise UserError(f"the model's input {name} is of type {kind}; known are {', '.join(TYPES)}")
        inputs.append(ModelInput(name, tuple(sorted({*port.get_names(), name})), sizes, TYPES[kind]))
    return inputs


class Samples(Sequence[Sample]):
    """Chosen samples of a data set in a fixed order, each checked against the model's inputs when it is read.

    Reading gives `Sample`s whose inputs are complete, in the model's order, contiguous and of the model's types.

    Raises:
        UserError: (on reading) naming sample and input: a wrong name, shape or type, NaN or infinity, or content that differs
            from `expected`.
    """

    def __init__(
        self,
        dataset: Dataset,
        inputs: Sequence[ModelInput],
        indices: Sequence[int] | None = None,
        name: str = "data",
        expected: Sequence[Identity] | None = None,
    ) -> None:
        """
        Args:
            indices: which samples of the data set, in which order; by default all.
            name: what to call the set in messages, e.g. "calibration".
            expected: identity of each chosen sample as it was recorded; checked on reading.
        """
        self.dataset = dataset
        self.inputs = list(inputs)
        self.indices = list(range(len(dataset))) if indices is None else list(indices)
        self.name = name
        self.expected = expected

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            expected = None if self.expected is None else self.expected[position]
            return Samples(self.dataset, self.inputs, self.indices[position], self.name, expected)
        sample = checked(self.dataset[self.indices[position]], self.inputs, self.label(position))
        if self.expected is not None and identity(sample) != self.expected[position]:
            raise UserError(f"{sample.label} has changed since the stage `prepare`: run `dvc repro --force prepare`, then `dvc repro`")
        return sample

    def __iter__(self) -> Iterator[Sample]:
        return (self[position] for position in range(len(self)))

    def label(self, position: int) -> str:
        """What to call a sample in messages."""
        index = self.indices[position]
        own = self.own_label(position)
        return f"{self.name} sample {index}" + (f" ({own})" if own else "")

    def own_label(self, position: int) -> str | None:
        """What the data set itself calls a sample, e.g. its file name."""
        label = getattr(self.dataset, "label", None)
        return None if label is None else str(label(self.indices[position]))


def checked(item: Any, inputs: Sequence[ModelInput], label: str) -> Sample:
    """One item of a data set as a sample of the model.

    Raises:
        UserError: names `label` and the input: what is wrong with it and what the model expects.
    """
    given, target = _split(item, label)
    by_name = _by_name(given, inputs, label)
    return Sample({entry.name: _checked_array(by_name[entry.name], entry, label) for entry in inputs}, target, label)


def _split(item: Any, label: str) -> tuple[Mapping[str, Any], Any]:
    if isinstance(item, Sample):
        given, target = item.inputs, item.target
    elif isinstance(item, tuple):
        if len(item) != 2:
            raise UserError(f"{label} is a tuple of {len(item)}, but must be (inputs, target)")
        given, target = item
    else:
        given, target = item, None
    return (given if isinstance(given, Mapping) else {"": given}), target


def _by_name(given: Mapping[str, Any], inputs: Sequence[ModelInput], label: str) -> dict[str, Any]:
    if len(inputs) == 1 and set(given) == {""}:
        return {inputs[0].name: given[""]}
    expected = ", ".join(entry.name for entry in inputs)
    if set(given) == {""}:
        raise UserError(f"{label} is a single array, but the model has {len(inputs)} inputs: {expected}")
    found = {entry.name: [name for name in given if name in entry.aliases] for entry in inputs}
    known = {name for names in found.values() for name in names}
    if set(given) - known:
        unknown = ", ".join(repr(name) for name in given if name not in known)
        raise UserError(f"{label} has an input {unknown}, but the model's inputs are: {expected}")
    wrong = [name for name, names in found.items() if len(names) != 1]
    if wrong:
        raise UserError(f"{label} has no array (or two) for input {', '.join(wrong)}; the model's inputs are: {expected}")
    return {name: given[names[0]] for name, names in found.items()}


def _checked_array(value: Any, expected: ModelInput, label: str) -> np.ndarray:
    array = np.asarray(value)
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == np.bool_) or np.issubdtype(array.dtype, np.complexfloating):
        raise UserError(f"{label}: input {expected.name} is of type {array.dtype}, not numbers")
    if expected.shape is not None:
        fits = array.ndim == len(expected.shape) and all(want in (-1, have) for want, have in zip(expected.shape, array.shape, strict=True))
        if not fits:
            wanted = [size if size >= 0 else "?" for size in expected.shape]
            raise UserError(
                f"{label}: input {expected.name} has shape {list(array.shape)}, but the model expects {wanted}".replace("'", "")
            )
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        place = [int(index) for index in np.argwhere(~np.isfinite(array))[0]]
        raise UserError(f"{label}: input {expected.name} has the value {array[tuple(place)]} at {place}")
    with np.errstate(over="ignore", invalid="ignore"):
        converted = np.ascontiguousarray(array, dtype=expected.dtype).reshape(array.shape)
    if converted.dtype != array.dtype and not _same_numbers(array, converted):
        raise UserError(f"{label}: input {expected.name} is of type {array.dtype} with values that {expected.dtype} cannot hold")
    return converted


def _same_numbers(array: np.ndarray, converted: np.ndarray) -> bool:
    """Whether a conversion kept the numbers: up to rounding between floating-point types, exactly for integers."""
    if np.issubdtype(converted.dtype, np.floating):
        return bool(np.isfinite(converted).all())
    return bool(np.array_equal(converted.astype(array.dtype), array))


# ------------------------------------------------------------------------------------------------ identity


class Identity(NamedTuple):
    """What tells samples apart: SHA-256 of the inputs' names, types, shapes and values, and of the target (None: no target)."""

    inputs: str
    target: str | None


def identity(sample: Sample) -> Identity:
    """The identity of a checked sample.

    Raises:
        UserError: the target is not made of numbers, text, arrays, lists and dictionaries.
    """
    try:
        return Identity(_content_hash(sample.inputs), None if sample.target is None else _content_hash(sample.target))
    except UserError as error:
        raise UserError(f"{sample.label}: {error}") from error


def _content_hash(value: Any) -> str:
    digest = hashlib.sha256()
    _update(digest, value)
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.ascontiguousarray(value)
        if array.dtype.hasobject:
            raise UserError("the target is an array of Python objects; use numbers or text")
        digest.update(f"array {array.dtype.str} {np.shape(value)}\n".encode())
        digest.update(array.data if array.dtype.kind not in "mMUSV" else array.tobytes())
    elif isinstance(value, Mapping):
        digest.update(f"map {len(value)}\n".encode())
        for key in sorted(value, key=str):
            _update(digest, str(key))
            _update(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(f"list {len(value)}\n".encode())
        for item in value:
            _update(digest, item)
    elif value is None or isinstance(value, (str, bool, int, float)):
        text = f"{type(value).__name__} {value!r}"
        digest.update(f"{len(text)} {text}\n".encode())
    else:
        raise UserError(f"the target is of type {type(value).__name__}; use numbers, text, arrays, lists or dictionaries of them")
