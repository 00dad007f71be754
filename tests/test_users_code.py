"""Data sets and metrics of a user's own that fail, through `dvc repro`: one line that says where, and nothing half-done."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest

from tests.project import Project
from tests.runtime import models

OWN = """\
import sys
import numpy as np
from stages.runtime.metrics import Metric
{top}

class Own:
    def __len__(self):
        return 12

    def __getitem__(self, index):
        row = np.sin(np.arange(4.0) + index)[None].astype(np.float32)
        if index == {sample}:
            {getitem}
        return [row, index % 3]

    label = "no function"


class Share(Metric):
    def per_sample(self, outputs, target):
        {per_sample}
        return float(outputs[0].argmax() == target)
"""
KEYS = """\
model: {name: net, path: net.xml}
data: {calibration: {_target_: conf.own.Own}, calibration_size: 6}
metric: {share: {_target_: conf.own.Share}}
evaluate: {noise_samples: 0, benchmark: {enabled: false}}
tracking: {enabled: false}
"""


def run(project: Project, **code: str) -> tuple[int, str, list[str]]:
    """`dvc repro` of a model with a data set and a metric of its own, with `code` in places of the class."""
    ov.save_model(models.linear(np.random.default_rng(0).normal(size=(4, 3))), project.root / "net.xml", compress_to_fp16=False)
    project.write("conf/own.py", OWN.format(**({"top": "", "sample": "9", "getitem": "pass", "per_sample": "pass"} | code)))
    project.params(KEYS, "model: local", "data: custom", "metric: null")
    outcome = project.repro()
    return outcome.code, outcome.output, outcome.errors


def test_a_list_of_inputs_and_label_and_a_label_that_is_no_function(project: Project) -> None:
    code, output, _ = run(project)
    assert code == 0, output


FAILURES = {
    "return {}['x']": ("getitem", "prepare", "validation sample 9: KeyError: 'x' (conf/own.py, line 13, in __getitem__)"),
    "sys.exit(0)": ("getitem", "prepare", "validation sample 9: it ends the program, with sys.exit(0) (conf/own.py, line 13"),
    "sys.exit()": ("top", "prepare", "metric.share: conf.own.Share: it ends the program, with sys.exit() (conf/own.py"),
    "import no_package": ("top", "prepare", "metric.share: conf.own.Share: ModuleNotFoundError: No module named 'no_package'"),
    "target['x']": ("per_sample", "evaluate", "metric share, validation sample 6: per_sample of Share: TypeError: 'int'"),
    "return None": ("per_sample", "evaluate", "metric share: per_sample gives nothing (None) for validation sample 6"),
    "sys.exit(1)": ("per_sample", "evaluate", "metric share, validation sample 6: per_sample of Share: it ends the program"),
}


@pytest.mark.parametrize("code", FAILURES)
def test_what_fails_is_named(project: Project, code: str) -> None:
    place, stage, message = FAILURES[code]
    status, output, errors = run(project, **{place: code})
    assert status != 0
    (line,) = errors
    assert line.startswith(f"{stage}: error: {message}")
    assert not (project.root / "build" / stage).exists()
    # The way to an exception helps; nothing of it is the project's own.
    assert ("Traceback" in output) == ("Error: " in message)
    assert all(f'File "{project.root}' in text for text in output.splitlines() if text.startswith("  File "))
