"""The zoo: its own parts, and its models through the whole pipeline."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.zoo import entries, packages
from tests.zoo.pipeline import prepared, run
from tests.zoo.table import table

SMALL = [name for name in entries.names() if entries.read(name).small]
VARIANTS = [(name, variant) for name in entries.names() for variant in entries.read(name).variants]


@pytest.mark.parametrize("name", entries.names())
def test_entry(name: str) -> None:
    entry = entries.read(name)
    defaults = entry.params["defaults"]
    assert entry.about.endswith(")") and len(entry.about) < 140  # a line, with the licence
    assert set(entry.variants) <= {"static", "dynamic"}
    for file in entry.files:
        assert (entries.MODELS / file).is_file()
    assert defaults[-1] == "_self_"


def test_merging() -> None:
    params: dict[str, Any] = {"model": {"path": "a", "input_shape": {"x": [1, 3]}}, "data": {"size": 2}}
    changes = {"model": {"input_shape": {"x": [2]}}, "quantization": {"preset": "mixed"}}
    expected = {"model": {"path": "a", "input_shape": {"x": [2]}}, "data": {"size": 2}, "quantization": {"preset": "mixed"}}
    assert entries.merged(params, changes) == expected
    assert params["model"]["input_shape"]["x"] == [1, 3]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["pack/data/*.txt"], {"a.txt", "b.txt"}),
        (["pack/data/a.txt", "pack/more/**"], {"data/a.txt", "more/c.bin", "more/deep/d.txt"}),
        (["pack/**/*.txt"], {"data/a.txt", "data/b.txt", "more/deep/d.txt"}),
    ],
)
def test_files_out_of_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patterns: list[str], expected: set[str]) -> None:
    monkeypatch.setenv("POT_WORKFLOW_ZOO", str(tmp_path / "cache"))
    wheel = tmp_path / "cache" / "wheels" / "pack==1.0" / "pack-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        for member in ("pack/data/a.txt", "pack/data/b.txt", "pack/more/c.bin", "pack/more/deep/d.txt", "pack-1.0.dist-info/RECORD"):
            archive.writestr(member, member)
    packages.extract("pack==1.0", patterns, tmp_path / "out")
    assert {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()} == expected
    with pytest.raises(FileNotFoundError, match=r"pack==1\.0 has no file like pack/none"):
        packages.extract("pack==1.0", ["pack/none"], tmp_path / "out")


def test_table(tmp_path: Path) -> None:
    peer = {"value": 0.95, "cpu_seconds": 4.0, "ours_below": [0.05, 0.01, 0.09]}
    result = {
        "presets": {
            "performance": {"value": 0.9, "fidelity": {"ratio": 0.4, "limit": 2.0, "first": None}},
            "mixed": {"value": 0.96, "fidelity": {"ratio": 6.25, "limit": 2.0, "first": {"type": "MatMul"}}},
        },
        "peers": {"performance": peer, "mixed": {"failed": "ValueError: no"}},
        "speed_up": {"ours performance": [2.0, 1.9, 2.1], "NNCF performance": [1.8, 1.7, 1.9], "FP32 default": [1.5, 1.4, 1.6]},
        "ours_cpu_seconds": 2.0,
    } | {"metric": "accuracy", "share": True, "fp32": 0.97, "default": 0.96, "validation": 50}
    (tmp_path / "magika.json").write_text(json.dumps({"static": result, "dynamic": {"presets": {}, "peers": {}, "failed": "mixed: no"}}))
    lines = [line for line in table(tmp_path).splitlines() if "magika, " in line]
    assert lines == [
        "| magika, static | accuracy | 50 | 97.0 % | 96.0 % | 90.0 % | 96.0 % |  | 95.0 % | fails | **-5.0 [-9.0, -1.0]** |",
        "- magika, dynamic failed: mixed: no",
        "| magika, static | 1.50 | 2.00 |  |  | 1.80 |  | 2.0 | 4.0 | 0.4; **6.25, from MatMul on** |",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_small_model(name: str, tmp_path: Path) -> None:
    entry = entries.read(name)
    project = prepared(entry, tmp_path / "project")
    for variant in entry.variants:
        holds(entry, run(entry, project, variant, ["performance"]))


@pytest.mark.zoo
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_model(name: str, variant: str, tmp_path: Path) -> None:
    entry = entries.read(name)
    peers = ["performance", "mixed"] if importlib.util.find_spec("nncf") else []
    result = run(entry, prepared(entry, tmp_path / "project"), variant, peers=peers)
    holds(entry, result)
    for preset, peer in result["peers"].items():
        assert "failed" in peer or peer["ours_below"][1] <= 0, f"{preset} is less accurate than NNCF: {peer['ours_below']}"


def holds(entry: entries.Entry, result: dict[str, Any]) -> None:
    """FP32 does what it can, so the data are right, and INT8 loses no more than the entry says."""
    assert "failed" not in result, result["failed"]
    assert result["fp32"] >= entry.least
    for preset, outcome in result["presets"].items():
        low = outcome["drop"][1]
        assert low is not None and low <= entry.most, f"{preset} loses {outcome['drop']}"
        assert outcome["quantizers"]["weights"] > 0
