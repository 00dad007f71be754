"""The reference in conf/README.md says what the schema says."""

from __future__ import annotations

import dataclasses

from stages.configuration import reference, schema
from tests.project import ROOT


def test_the_document_holds_the_current_reference() -> None:
    text = (ROOT / "conf" / "README.md").read_text(encoding="utf-8")
    assert reference.written(text) == text, "run `python -m stages.configuration.reference --write`"


def test_every_key_has_a_row_with_its_meaning() -> None:
    table = reference.reference()
    assert "| `quantization.preset` | str | performance | performance, mixed, accuracy, auto | performance: all symmetric;" in table
    assert "| `quantization.range_estimator.max.outlier_prob` | float | null | > 0, < 0.5 |" in table
    assert "| `model.name` | str | required |" in table
    sections = {line.split("`")[1].split(".")[0] for line in table.splitlines()[2:]}
    assert sections == {field.name for field in dataclasses.fields(schema.Config)} - set(schema.COMPUTED)
