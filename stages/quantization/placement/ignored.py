"""What the user or the model type leaves in floating point."""

from __future__ import annotations

import difflib
import re
from typing import Any

from stages.common.errors import ConfigError
from stages.configuration import schema
from stages.configuration.target_device import Target
from stages.quantization.model.graph import Graph, Node

# With model_type transformer these stay in floating point; Multiply, too, but on CPU_SPR.
TRANSFORMER_FLOAT = frozenset({"Add", "Power", "Squeeze", "Subtract", "ReduceMean", "SquaredDifference", "MVN"})


def ignored_operations(graph: Graph, target: Target, config: schema.Quantization) -> dict[Node, str]:
    """Operations that the user or the model type excludes, with the reason. ConfigError for an entry that names none."""
    found: dict[Node, str] = {}
    for entry in config.ignored.scope:
        found.update(dict.fromkeys(_named(graph, entry), "quantization.ignored.scope"))
    for operation in config.ignored.operations:
        matched = [node for node in graph.of_type([operation.type]) if _attributes_equal(node, operation.attributes)]
        if not matched:
            raise ConfigError(
                f"quantization.ignored.operations: no {operation.type} with attributes {operation.attributes};"
                f" operation types of the model: {', '.join(sorted({node.type for node in graph.nodes}))}"
            )
        found.update(dict.fromkeys(matched, "quantization.ignored.operations"))
    if config.model_type == "transformer":
        types = TRANSFORMER_FLOAT if target.rules == "CPU_SPR" else TRANSFORMER_FLOAT | {"Multiply"}
        for node in graph.of_type(types):
            found.setdefault(node, "model_type transformer")
    return found


def _named(graph: Graph, entry: str) -> list[Node]:
    """The operations that an entry of the scope means: one by its name, or those that match `re:...`."""
    candidates = [node for node in graph.nodes if not node.constant]
    if entry.startswith("re:"):
        try:
            expression = re.compile(entry.removeprefix("re:"))
        except re.error as error:
            raise ConfigError(f"quantization.ignored.scope: {entry!r} is not a regular expression: {error}") from None
        matched = [node for node in candidates if expression.fullmatch(node.name)]
    else:
        matched = [node for node in candidates if node.name == entry]
    if not matched:
        near = difflib.get_close_matches(entry.removeprefix("re:"), [node.name for node in candidates], n=3, cutoff=0.3)
        raise ConfigError(f"quantization.ignored.scope: {entry!r} matches no operation; nearest names: {', '.join(near) or 'none'}")
    return matched


def _attributes_equal(node: Node, wanted: dict[str, Any]) -> bool:
    actual = node.attributes()
    return all(key in actual and _same_value(actual[key], value) for key, value in wanted.items())


def _same_value(actual: Any, wanted: Any) -> bool:
    if isinstance(wanted, list | tuple):
        same_length = isinstance(actual, list | tuple) and len(wanted) == len(actual)
        return same_length and all(map(_same_value, actual, wanted))
    if isinstance(wanted, bool) or isinstance(actual, bool):
        return isinstance(wanted, bool) and isinstance(actual, bool) and actual == wanted
    if isinstance(wanted, int | float):
        return isinstance(actual, int | float) and float(actual) == float(wanted)
    return str(actual).lower() == str(wanted).lower()
