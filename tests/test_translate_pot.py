"""The command, for real: what it prints, what it writes, and that the result is valid."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import openvino as ov
import pytest
import yaml
from PIL import Image

from stages.pot.translation import translate
from tests.pot.configurations import AWARE, FULL, SIMPLIFIED, TPE, configuration, default
from tests.project import Outcome, Project
from tests.quantization import small


@pytest.fixture
def own(project: Project) -> Project:
    """A project with a small network and images."""
    generator = np.random.default_rng(0)
    x = small.parameter([1, 3, 12, 16])
    hidden = small.convolution(x, generator.normal(size=(4, 3, 3, 3)).astype(np.float32), "conv_1", bias=np.ones(4, np.float32))
    output = small.convolution(hidden, generator.normal(size=(2, 4, 3, 3)).astype(np.float32), "conv_2", bias=np.ones(2, np.float32))
    (project.root / "models").mkdir()
    ov.save_model(small.model(output, x), project.root / "models/net.xml", compress_to_fp16=False)
    (project.root / "images").mkdir()
    for index in range(8):
        picture = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        picture.save(project.root / f"images/{index}.png")
    project.write("pot.json", SIMPLIFIED)
    return project


def translate_in(project: Project, *arguments: str) -> Outcome:
    return project.run(sys.executable, "-m", "stages.translate_pot", *arguments)


def test_looking_changes_nothing(own: Project) -> None:
    before = (own.root / "params.yaml").read_bytes()
    command = [sys.executable, "-m", "stages.translate_pot", "pot.json"]
    done = subprocess.run(command, cwd=own.root, env=own.environment(), capture_output=True, text=True, check=True)
    assert (own.root / "params.yaml").read_bytes() == before
    values = yaml.safe_load(done.stdout)
    assert values["model"] == {"name": "smallnet", "path": "models/net.xml"}
    assert values["data"]["calibration"]["size"] == [12, 16]  # of the model's input
    assert done.stderr.splitlines()[0] == "read as something else:"
    assert "nothing was left behind" in done.stderr


@pytest.mark.parametrize(
    "content",
    [
        configuration(default(**{**FULL, "stat_subset_size": 4})),
        configuration({"name": "AccuracyAwareQuantization", "params": {**AWARE, "stat_subset_size": 4}}),
        configuration(
            {
                "name": "TunableQuantization",
                "params": {"tuning_scope": ["layer", "mode", "range_estimator"], "outlier_prob_choices": [1e-3]},
            },
            optimizer={"name": "Tpe", "params": TPE},
        ),
        configuration({"name": "MinMaxQuantization", "params": {"preset": "mixed"}}, {"name": "FastBiasCorrection", "params": {}}),
    ],
    ids=["default", "accuracy_aware", "tpe", "steps"],
)
def test_the_result_is_a_valid_configuration(own: Project, content: dict[str, Any]) -> None:
    own.write("pot.json", json.dumps(content))
    assert translate_in(own, "pot.json", "--write").code == 0
    outcome = own.run(sys.executable, "-m", "stages.config")
    assert outcome.code == 0, outcome.output
    built = json.loads((own.root / "build/config.json").read_text())
    for key, value in translate(content, own.root).values.items():
        place = built
        for name in key.split("."):
            place = place[name]
        if not isinstance(value, dict | list):
            assert place == value, key


def test_accuracy_checker_stops_at_what_must_be_written(own: Project) -> None:
    own.write("pot.json", json.dumps(configuration(default(), engine={"config": "ac.yaml"})))
    assert "data: your samples" in translate_in(own, "pot.json", "--write").output
    outcome = own.run(sys.executable, "-m", "stages.config")
    assert outcome.errors == ["config: error: data.calibration._target_: ??? is not allowed; a value must be given"]


def test_a_file_that_cannot_be_read_is_one_line(own: Project) -> None:
    outcome = translate_in(own, "missing.json", "--write")
    assert outcome.code == 1
    assert outcome.output == "translate_pot: error: missing.json: No such file or directory\n"


@pytest.mark.slow
def test_a_translated_pipeline_runs(own: Project) -> None:
    assert translate_in(own, "pot.json", "--write").code == 0
    outcome = own.repro()
    assert outcome.code == 0, outcome.output
    assert "smallnet on image_folder: preset mixed for CPU, 4 calibration and 4 validation samples" in outcome.output


def test_what_the_user_must_fill_in_is_what_config_says(own: Project) -> None:
    project = own
    project.write("pot.json", json.dumps(configuration(default(), engine={"datasets": [{"data_source": "pictures"}]})))
    outcome = project.run(sys.executable, "-m", "stages.translate_pot", "pot.json", "--write")
    assert outcome.code == 0, outcome.output
    refusal = "data.calibration.path: 'pictures' is not allowed; expected an existing file or folder; paths start at the project's folder"
    assert f"  what `config` says of it so far: {refusal}" in outcome.output.splitlines()
    assert project.run(sys.executable, "-m", "stages.config").errors == [f"config: error: {refusal}"]
    project.write("pictures/cat/1.png", "")
    outcome = project.run(sys.executable, "-m", "stages.translate_pot", "pot.json", "--write")
    assert "what `config` says" not in outcome.output
    assert project.run(sys.executable, "-m", "stages.config").code == 0
    project.write("pot.json", json.dumps(configuration({"name": "WeightSparsity", "params": {}})))
    before = (project.root / "params.yaml").read_bytes()
    outcome = project.run(sys.executable, "-m", "stages.translate_pot", "pot.json", "--write")
    assert (outcome.code, outcome.output.count("\n")) == (1, 1) and (project.root / "params.yaml").read_bytes() == before
