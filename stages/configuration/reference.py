"""Print the configuration reference of conf/README.md, made from the schema.

Examples:
    python -m stages.configuration.reference             # print the table
    python -m stages.configuration.reference --write     # put it into conf/README.md
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.configuration import schema

README = Path("conf/README.md")
BEGIN = "<!-- configuration reference, made by `python -m stages.configuration.reference --write` -->"
END = "<!-- end of the configuration reference -->"


def reference() -> str:
    """A Markdown table with a row per configuration key."""
    rows = ["| `{}` | {} | {} | {} | {} |".format(*row) for row in _rows(schema.Config, "") if row[0].split(".")[0] not in schema.COMPUTED]
    return "\n".join(["| key | type | default | allowed | meaning |", "|---|---|---|---|---|", *rows])


def written(text: str) -> str:
    """The document's text with the table between the markers replaced by the current one."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{reference()}\n{END}{after}"


def _rows(section: type[Any], prefix: str) -> Iterator[tuple[str, str, str, str, str]]:
    types_of = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        key, kind, metadata = f"{prefix}{field.name}", types_of[field.name], field.metadata
        if dataclasses.is_dataclass(kind):
            yield from _rows(typing.cast("type[Any]", kind), f"{key}.")
        else:
            yield key, _type(kind), _default(field), _allowed(metadata), metadata["meaning"].replace("|", "\\|")


def _type(kind: Any) -> str:
    """A type in words, without its optional part: that is what the default null says."""
    arguments = [argument for argument in typing.get_args(kind) if argument is not type(None)]
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        return _type(arguments[0])
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "mapping"
    name = str(kind.__name__)
    return re.sub(r"(?<!^)(?=[A-Z])", " ", name).lower() if dataclasses.is_dataclass(kind) else name


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if value == schema.MISSING:
        return "required"
    if value is None:
        return "null"
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _allowed(metadata: Any) -> str:
    if "choices" in metadata:
        return ", ".join(map(str, metadata["choices"]))
    words = {"low": "≥ {}", "above": "> {}", "high": "≤ {}", "below": "< {}"}
    return ", ".join(text.format(f"{metadata[key]:g}") for key, text in words.items() if key in metadata)


def main() -> None:
    """Print the table, or write it into conf/README.md."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.configuration.reference", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the table into conf/README.md")
    if parser.parse_args().write:
        README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(reference())


if __name__ == "__main__":
    main()
