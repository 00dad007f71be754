"""Read a POT configuration: JSON with comments and trailing commas, or YAML."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from stages.common.errors import UserError

# A string, or what does not belong to the data: comments to the end of the line or between /* and */, and a comma before a bracket.
_STRING = r'"(?:\\.|[^"\\])*"'
_COMMENT = re.compile(rf"({_STRING})|//[^\n]*|/\*.*?\*/", re.DOTALL)
_TRAILING_COMMA = re.compile(rf"({_STRING})|,(?=\s*[}}\]])")


def read_pot(path: Path) -> dict[str, Any]:
    """The content of a POT configuration file.

    Raises:
        UserError: when it is missing, is neither JSON nor YAML, or has none of POT's sections.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file") from None
    content = _yaml(path, text) if path.suffix in (".yaml", ".yml") else _json(path, text)
    if not isinstance(content, dict) or not {"model", "engine", "compression"} & content.keys():
        raise UserError(f"{path}: no POT configuration: none of the sections model, engine and compression is there")
    return content


def plain_json(text: str) -> str:
    """JSON without comments and trailing commas; line breaks stay, so that positions in messages are right."""

    def blank(match: re.Match[str]) -> str:
        return match[1] or re.sub(r"[^\n]", " ", match[0])

    return _TRAILING_COMMA.sub(lambda match: match[1] or " ", _COMMENT.sub(blank, text))


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(plain_json(text))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}") from None


def _yaml(path: Path, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
