"""Write build/report.html from the template beside this file; nothing is imported or written when nothing changed."""

from __future__ import annotations

import hashlib
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from stages.common import artifacts
from stages.configuration.schema import Config

if TYPE_CHECKING:
    from jinja2 import Environment

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
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


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
