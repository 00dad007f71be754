"""Translate an existing POT configuration (JSON, with comments, or YAML) into params.yaml, and list what cannot be carried over.

The parameters go to the standard output, the list to the standard error. Nothing is overwritten without --write.

Examples:
    python -m stages.translate_pot mobilenet_v2.json                 # look at it
    python -m stages.translate_pot mobilenet_v2.json > params.yaml   # or keep it,
    python -m stages.translate_pot mobilenet_v2.json --write         # which is the same
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from stages.common import artifacts
from stages.common.errors import ConfigError, UserError
from stages.configuration.composition import CONF, compose
from stages.configuration.validation import checked
from stages.pot.reading import read_pot
from stages.pot.result import Remark, Translation
from stages.pot.translation import nested, translate
from stages.stage import fail

NAME = "translate_pot"
PARAMS = Path("params.yaml")


def main() -> None:
    """Print params.yaml, or write it; exit with 1 and one line when the file cannot be read."""
    parser = argparse.ArgumentParser(
        prog=f"python -m stages.{NAME}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configuration", type=Path, help="POT's configuration file")
    parser.add_argument("--write", action="store_true", help=f"write {PARAMS} of this project, which is overwritten")
    arguments = parser.parse_args()
    try:
        translation = translate(read_pot(arguments.configuration), Path())
    except UserError as error:
        sys.exit(fail(NAME, error, PARAMS))
    text = params_yaml(translation, arguments.configuration.name)
    if (problem := _refused(text)) is not None:
        translation.missing.append(f"what `config` says of it so far: {problem}")
    if arguments.write:
        try:
            artifacts.write_text(PARAMS, text)
        except OSError as error:
            sys.exit(fail(NAME, error, PARAMS))
    else:
        print(text, end="")
    print("\n".join(listing(translation)), file=sys.stderr)
    if arguments.write:
        print(f"written: {PARAMS}", file=sys.stderr)


def _refused(text: str) -> str | None:
    """What the project's checks say of a params.yaml; None where it passes, or where there is no project."""
    if not CONF.is_dir():
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PARAMS
        path.write_text(text, encoding="utf-8")
        try:
            checked(compose(params=path))
        except ConfigError as error:
            return str(error)
    return None


def params_yaml(translation: Translation, source: str) -> str:
    """The text of params.yaml."""
    options = "\n".join(f"  - override /{group}: {option}" for group, option in translation.options.items())
    head = f"# Translated from POT's {source} by `python -m stages.{NAME}`. This file comes last: it wins over conf/.\n"
    head += "# `quantization: {pot_compatible: true}` follows POT also where this project does better on purpose.\n"
    body = yaml.safe_dump(nested(translation.values), sort_keys=False, allow_unicode=True)
    return f"{head}defaults:\n{options}\n  - _self_\n\n{body}"


def listing(translation: Translation) -> Iterator[str]:
    """What became something else, what was left behind and why, and what is still to be written: one line each."""
    titles = {
        "read as something else:": translation.changed,
        "not carried over:": translation.left,
        "needed no more:": translation.needless,
    }
    for title, remarks in titles.items():
        if remarks:
            yield title
            yield from (f"  {_shown(remark)}: {remark.text}" for remark in remarks)
    if not translation.left:
        yield "nothing was left behind"
    if translation.missing:
        yield "to be written by hand:"
        yield from (f"  {text}" for text in translation.missing)


def _shown(remark: Remark) -> str:
    value = json.dumps(remark.value, ensure_ascii=False, default=str)
    return f"{remark.key} = {value if len(value) <= 60 else value[:57] + '...'}"


if __name__ == "__main__":
    main()
