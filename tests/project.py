"""A copy of the project in which `dvc repro` can run for real."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIMPLE_PARAMS = """\
defaults:
{overrides}
  - _self_
{keys}
"""


@dataclass(frozen=True)
class Outcome:
    """What a command did: exit code, and stdout and stderr together as a user sees them."""

    code: int
    output: str

    @property
    def errors(self) -> list[str]:
        """The one-line errors of stages."""
        return [line for line in self.output.splitlines() if ": error: " in line]

    @property
    def stages(self) -> list[str]:
        """The stages that DVC ran, in order."""
        return [line.split("'")[1] for line in self.output.splitlines() if line.startswith("Running stage '")]


@dataclass(frozen=True)
class Project:
    """A copy of the project without git, with a cache of its own."""

    root: Path

    def run(self, *command: str, env: Mapping[str, str] | None = None, timeout: float = 300) -> Outcome:
        """Run a command in the project with this test's Python first in PATH."""
        result = subprocess.run(
            command,
            cwd=self.root,
            env=self.environment() | dict(env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        return Outcome(result.returncode, result.stdout)

    def repro(self, *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 300) -> Outcome:
        """`dvc repro`."""
        return self.run(sys.executable, "-m", "dvc", "repro", *arguments, env=env, timeout=timeout)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `dvc` with arguments and return at once."""
        command = [sys.executable, "-m", "dvc", *arguments]
        return subprocess.Popen(command, cwd=self.root, env=self.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def copy(self, target: Path) -> Project:
        """A copy of it at `target`, with what was built and what DVC knows."""
        shutil.copytree(self.root, target, symlinks=True)
        return Project(target)

    def environment(self) -> dict[str, str]:
        """The environment in which DVC finds this test's Python, and nothing of an enclosing DVC run."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
        # A user's own settings must not decide a test: no global DVC or MLflow configuration.
        own |= {"HOME": str(self.root / "home"), "DVC_NO_ANALYTICS": "1", "COLUMNS": "200"}
        return own | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", "")])}

    def params(self, keys: str = "", *overrides: str) -> None:
        """Replace params.yaml: group choices like `model: local`, and further YAML."""
        lines = "\n".join(f"  - override /{choice}" for choice in overrides)
        text = SIMPLE_PARAMS.format(overrides=lines, keys=keys)
        self.write("params.yaml", "\n".join(line for line in text.splitlines() if line.strip()) + "\n")

    def write(self, path: str, text: str) -> Path:
        """Write a text file into the project."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file


def copy_project(target: Path) -> Project:
    """Copy the project's files to `target`."""
    for path in project_files():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target / path)
    # Without git: nothing to commit, and nothing above the folder is looked at.
    (target / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    return Project(target)


@functools.cache
def project_files() -> tuple[Path, ...]:
    """The files that git tracks or would track, without the tests and what they made."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [Path(name) for name in listed.stdout.split("\0") if name]
    return tuple(path for path in files if path.parts[0] != "tests" and path.name != "dvc.lock" and (ROOT / path).is_file())
