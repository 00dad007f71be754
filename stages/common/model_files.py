"""The formats of floating-point models, and the files that belong to one. Imports nothing heavy."""

from __future__ import annotations

import re
from pathlib import Path

# File suffix -> OpenVINO's name of the front end that reads it. A TensorFlow saved model is a folder.
FRAMEWORKS = {".xml": "ir", ".onnx": "onnx", ".tflite": "tflite", ".pdmodel": "paddle", ".pb": "tf"}
WEIGHTS = {".xml": ".bin", ".pdmodel": ".pdiparams"}  # the file beside it that holds the weights
# How ONNX writes where a tensor's data lies: an entry of a map, its key and the beginning of its value.
_LOCATION = re.compile(rb"\n\x08location\x12")


def files_of(path: Path) -> list[Path]:
    """All files of a model that exist, sorted: itself, weights beside it, ONNX's external data; all of a saved model's folder."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    files = {path, path.with_suffix(WEIGHTS.get(path.suffix.lower(), path.suffix))}
    if path.suffix.lower() == ".onnx" and path.is_file():
        files |= {path.parent / name for name in external_data(path.read_bytes())}
    return sorted(file for file in files if file.is_file())


def external_data(onnx: bytes) -> set[str]:
    """The files, relative to the model's folder, in which an ONNX model keeps tensors (`TensorProto.external_data`)."""
    return {name for match in _LOCATION.finditer(onnx) if (name := _text_at(onnx, match.end()))}


def _text_at(content: bytes, position: int) -> str:
    """The string that protobuf stores at `position`: its length as a varint, then UTF-8; empty where there is none."""
    length = shift = 0
    for byte in content[position : position + 3]:
        length |= (byte & 0x7F) << shift
        shift += 7
        position += 1
        if byte < 0x80:
            break
    text = content[position : position + length].decode("utf-8", "replace")
    return "" if "\0" in text or "\ufffd" in text else text
