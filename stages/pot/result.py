"""The result of a translation: what values become, and remarks on everything else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.common.errors import ConfigError
from stages.configuration.conversion import typed
from stages.configuration.schema import Config

NEEDLESS = "needless: "  # begins the reason of a key that nobody will miss
UNKNOWN = "POT has no such key, as far as this project knows"
ABSENT = "this project has no such parameter"
NEEDED = {"model": {"name": "model"}, "data": {"name": "data"}}  # what the schema asks for, whatever is checked


@dataclass(frozen=True)
class Remark:
    """A key of the POT configuration, and what is to be said of it."""

    key: str
    value: Any
    text: str


@dataclass
class Translation:
    """The result so far.

    Attributes:
        options: The option of each group, for the defaults list of params.yaml.
        values: Value by dotted key of this project's configuration.
        changed: What became something else than its name says.
        left: What cannot be carried over.
        needless: What has no counterpart because nothing here needs it.
        missing: What has to be written by hand before the pipeline runs.
    """

    options: dict[str, str] = field(default_factory=lambda: {"model": "local"})
    values: dict[str, Any] = field(default_factory=dict)
    changed: list[Remark] = field(default_factory=list)
    left: list[Remark] = field(default_factory=list)
    needless: list[Remark] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def put(self, key: str, value: Any, target: str) -> None:
        """Carry a value over, unless the schema has no such key, refuses the value, or another algorithm said otherwise."""
        if target in self.values and self.values[target] != value:
            self.leave(key, value, f"another algorithm set {target} to {self.values[target]!r}, which serves all")
        elif problem := refusal(target, value):
            self.leave(key, value, problem)
        else:
            self.values[target] = value

    def leave(self, key: str, value: Any, reason: str) -> None:
        """Say why a value is not carried over."""
        remarks = self.needless if reason.startswith(NEEDLESS) else self.left
        remarks.append(Remark(key, value, reason.removeprefix(NEEDLESS)))

    def change(self, key: str, value: Any, text: str) -> None:
        """Say what a value became."""
        self.changed.append(Remark(key, value, text))

    def by_table(self, section: Mapping[str, Any], table: Mapping[str, str], place: str, handled: tuple[str, ...] = ()) -> None:
        """Carry over every key of a section that the table knows, and list the others, but those that are handled elsewhere."""
        for name, value in section.items():
            if name in handled:
                continue
            target = table.get(name, UNKNOWN)
            if " " in target:
                self.leave(f"{place}.{name}", value, target)
            else:
                self.put(f"{place}.{name}", value, target)


def section_of(result: Translation, value: Any, key: str) -> dict[str, Any]:
    """A section, or an empty one with a remark where something else stands."""
    if value is None or isinstance(value, dict):
        return dict(value or {})
    result.leave(key, value, "a section is expected here")
    return {}


def refusal(target: str, value: Any) -> str | None:
    """Why the schema does not take the value at a dotted key; None when it does."""
    section: Any = Config()
    for name in target.split("."):
        if not hasattr(section, name):
            return ABSENT
        section = getattr(section, name)
    tree = {name: dict(values) for name, values in NEEDED.items()}
    place: dict[str, Any] = tree
    *parents, last = target.split(".")
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = value
    try:
        typed(Config, tree)
    except ConfigError as error:
        return str(error)
    return None
