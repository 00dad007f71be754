"""Write build/report.html from the template beside this file; nothing is imported or written when nothing changed."""

from __future__ import annotations

import hashlib
import re
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from stages.common import artifacts
from stages.configuration.schema import Config

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

REPORT = artifacts.BUILD / "report.html"
HERE = Path(__file__).parent
OWN = (*sorted(HERE.glob("*.*")), HERE.parent / "common" / "units.py")  # what writes the report
HEAD = 400  # characters at the beginning of the page that hold its fingerprint


def write(config: Config, key: str) -> bool:
    """Write build/report.html unless it is there for the same inputs; whether it was written.

    Args:
        config: What was built.
        key: The result's key.

    Raises:
        UserError: when an artifact is missing or corrupt.
    """
    fingerprint = _fingerprint(key)
    with suppress(OSError), open(REPORT, encoding="utf-8") as file:
        if fingerprint in file.read(HEAD):
            return False
    artifacts.write_text(REPORT, rendered(config, key, fingerprint))
    return True


def rendered(config: Config, key: str, fingerprint: str = "") -> str:
    """The page: everything that comes from artifacts is escaped, nothing is loaded from elsewhere."""
    from stages.report.contents import contents

    return environment().get_template("page.html").render(report=contents(config, key), fingerprint=fingerprint)


def environment(*folders: Path) -> Environment:
    """Jinja, set up for the templates beside this file, and those in other folders."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([HERE, *folders])
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"breakable": breakable, "marked": marked}
    return made


def breakable(text: object) -> Markup:
    """A name as HTML that may be broken after each of its parts, rather than anywhere: `/backbone/conv_1.weight`."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(?<=[\w\]})])([/._:=,]+)(?=\w)", r"\1<wbr>", str(escape(text))))


def marked(text: object) -> Markup:
    """A sentence as HTML: what stands between backticks is code."""
    from markupsafe import Markup, escape

    parts = re.split(r"`([^`]+)`", str(text))
    return Markup("").join(
        Markup("<code>{}</code>").format(breakable(part)) if place % 2 else escape(part) for place, part in enumerate(parts)
    )


def _fingerprint(key: str) -> str:
    """A hash of all that the page shows: the result, its timings, the state of the repository, and the page's own code."""
    digest = hashlib.sha256(key.encode())
    measured = [*artifacts.BUILD.glob("*/*.json"), artifacts.CONFIG, Path("params.yaml"), *OWN]
    for path in sorted(path for path in measured if path.is_file() and path != artifacts.record("track")):
        digest.update(f"\n{path.name}\n".encode() + path.read_bytes())
    with suppress(OSError):
        status = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no", "--", "."]
        digest.update(subprocess.run(status, capture_output=True, check=False).stdout)
    return digest.hexdigest()
