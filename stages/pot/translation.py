"""Translate a POT configuration, key by key: what each becomes here, or why it cannot be carried over.

Tables say what a key becomes: a dotted key of the schema, or a sentence (it has a space) that says why nothing. Whatever no
table names is listed, too: nothing is dropped in silence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.configuration.schema import Config
from stages.pot.compression import ACCURACY_AWARE, BIASES, COMPRESSION, LAYERWISE, QUANTIZERS, SAMPLING, TUNABLE, translate_compression
from stages.pot.engine import ENGINE, MODEL, translate_engine, translate_model
from stages.pot.optimizer import BENCHMARK, TPE, translate_optimizer
from stages.pot.result import UNKNOWN, Translation, section_of


def translate(pot: Mapping[str, Any], root: Path) -> Translation:
    """The parameters that a POT configuration stands for.

    Args:
        pot: Content of the file.
        root: Folder that relative paths start from.
    """
    result = Translation()
    sections = {name: section_of(result, pot.get(name), name) for name in ("model", "engine", "compression", "optimizer")}
    for name, value in pot.items():
        if name not in sections:
            result.leave(name, value, UNKNOWN)
    translate_model(result, sections["model"])
    translate_compression(result, sections["compression"], sections["optimizer"])
    translate_optimizer(result, sections["optimizer"])
    translate_engine(result, sections["engine"], root)
    return result


def known_targets() -> set[str]:
    """Every key of this project that a table names."""
    tables = (MODEL, ENGINE, COMPRESSION, SAMPLING, BIASES, QUANTIZERS, LAYERWISE, ACCURACY_AWARE, TUNABLE, TPE, BENCHMARK)
    return {target for table in tables for target in table.values() if " " not in target}


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as sections, in the order of the schema."""
    order = [entry.name for entry in dataclasses.fields(Config)]
    tree: dict[str, Any] = {}
    for key in sorted(values, key=lambda key: order.index(key.split(".")[0])):
        place = tree
        *parents, last = key.split(".")
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = values[key]
    return tree
