"""Which files belong to a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.common.model_files import external_data, files_of

IMPORTED = Path(__file__).parents[1] / "runtime" / "imported"


def entry(name: str, length: bytes | None = None) -> bytes:
    """How protobuf writes the place of a tensor's data: key and value of a map, each with its length before it."""
    value = name.encode()
    return b"\n\x08location\x12" + (bytes([len(value)]) if length is None else length) + value


def test_a_model_with_external_data() -> None:
    assert files_of(IMPORTED / "external.onnx") == [IMPORTED / "external.onnx", IMPORTED / "external.weights"]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"ir" + entry("a.bin") + b"..." + entry("deep/er/w\u00e9ights") + entry("a.bin"), {"a.bin", "deep/er/w\u00e9ights"}),
        (entry("w" * 200, b"\xc8\x01"), {"w" * 200}),  # 200 = 0x48 + 1 * 128
        (b"location a.bin", set()),
        (b"\n\x08location", set()),
        (b"\n\x08location\x12", set()),
        (entry("a\0b"), set()),
    ],
)
def test_places_of_tensors(content: bytes, names: set[str]) -> None:
    assert external_data(content) == names


FILES = ("a.xml", "a.bin", "b.pdmodel", "b.pdiparams", "c.tflite", "c.bin", "saved/saved_model.pb", "saved/variables/v.index", "d.onnx")


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("a.xml", ["a.bin", "a.xml"]),
        ("b.pdmodel", ["b.pdiparams", "b.pdmodel"]),
        ("c.tflite", ["c.tflite"]),
        ("saved", ["saved_model.pb", "v.index"]),
        ("d.onnx", ["d.onnx"]),
        ("none.xml", []),
    ],
)
def test_other_formats(tmp_path: Path, name: str, files: list[str]) -> None:
    for file in FILES:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    assert [path.name for path in files_of(tmp_path / name)] == files
