"""Copies of the project in which jobs run: what is copied, what is linked, what is left out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from stages.common import artifacts
from stages.common.errors import UserError

# Never part of a copy: results and stores, which grow, and hidden files but DVC's own. Nor dvc.lock: what has been done is found in
# the cache of runs, and the shorter the file, the less DVC reads and writes per stage.
LEFT_OUT = {"build", "dvc.lock", "dvc_plots", "mlartifacts", "mlruns", "multirun", "outputs"}
HIDDEN = (".dvcignore",)
SHARED = (".baseline", ".journal", ".models")  # of build/: caches and journals that may be used by many at once
LARGEST_COPY = 1_000_000  # bytes; larger files are linked


def copy_project(project: Path, target: Path, params: str, cache: Path, named: Sequence[str] = ()) -> None:
    """Make a copy of the project in which DVC can run.

    Args:
        project: Its root.
        target: The copy's folder, below which there may be nothing.
        params: Content of the copy's params.yaml.
        cache: DVC's cache.
        named: Paths relative to the project that the configuration or dvc.yaml names: what the copy lacks of them is linked.
    """
    target.mkdir(parents=True)
    for path in sorted(project.iterdir()):
        hidden = path.name.startswith(".") and path.name not in HIDDEN
        if not hidden and path.name not in LEFT_OUT and not path.name.startswith("mlflow.db"):
            _place(path, target / path.name)
    (target / "params.yaml").unlink(missing_ok=True)
    (target / "params.yaml").write_text(params, encoding="utf-8")
    _configure_dvc(project / ".dvc", target / ".dvc", cache)
    for name in SHARED:
        (project / artifacts.BUILD / name).mkdir(parents=True, exist_ok=True)
        (target / artifacts.BUILD).mkdir(exist_ok=True)
        (target / artifacts.BUILD / name).symlink_to((project / artifacts.BUILD / name).resolve())
    for name in named:
        _link(project, target, name)


def _place(source: Path, target: Path) -> None:
    """Copy what may be edited while the job runs, and what is found by its place; link the rest."""
    if source.is_file() and not source.is_symlink():
        if source.suffix == ".dvc":
            return  # its data is linked, and not DVC's to touch from here
        if source.stat().st_size <= LARGEST_COPY:
            shutil.copy2(source, target)
        else:
            target.symlink_to(source.resolve())
    elif source.is_dir() and not source.is_symlink() and _is_code(source):
        target.mkdir()
        for path in sorted(source.iterdir()):
            _place(path, target / path.name)
    else:
        target.symlink_to(source.resolve())


def _is_code(folder: Path) -> bool:
    """Whether a folder holds Python or YAML files, and is no virtual environment."""
    if (folder / "pyvenv.cfg").exists():
        return False
    return any(Path(name).suffix in (".py", ".yaml") for _, _, names in os.walk(folder) for name in names)


def _configure_dvc(source: Path, target: Path, cache: Path) -> None:
    """DVC's configuration of the copy: the project's own, but for the shared cache and no git around it."""
    # DVC's own format, and not DVC's own way to write it: `dvc.config.Config.edit` stops at the first letter that is not ASCII.
    from configobj import ConfigObj

    target.mkdir()
    for name in ("config", "config.local"):
        if (source / name).exists():
            shutil.copy2(source / name, target / name)
    local = ConfigObj(str(target / "config.local"), write_empty_values=True, encoding="utf-8")
    local.setdefault("core", {})["no_scm"] = True
    # Hard links: a job's results cost no second copy of what is in the cache. Stages replace files and never write into them.
    local.setdefault("cache", {}).update({"dir": str(cache), "type": "reflink,hardlink,copy"})
    local.write()


def _link(project: Path, copy: Path, path: str) -> None:
    """Make a relative path that exists in the project lead to the same place in the copy.

    Raises:
        UserError: something else is in its way.
    """
    parts = Path(path).parts
    if not (project / path).exists() or parts[0] == artifacts.BUILD.name:
        return
    # The first folder on the way that the copy lacks, and not only the file: a model's weights are beside it.
    for length in range(1, len(parts) + 1):
        way = Path(*parts[:length])
        if not (copy / way).exists():
            beside = [other.name for other in (project / way.parent).iterdir() if other.is_file()] if length == len(parts) else []
            for name in {way.name, *beside}:
                with suppress(FileExistsError):  # another job has made it
                    (copy / way.parent / name).symlink_to((project / way.parent / name).resolve())
            break
    if ".." in parts and (copy / path).resolve() != (project / path).resolve():
        raise UserError(f"{path}: from {copy} this relative path leads to {(copy / path).resolve()}; give an absolute path")


def cache_folder(project: Path) -> Path:
    """DVC's cache of a project.

    Raises:
        UserError: the folder is no DVC project, or its configuration cannot be read.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(project)) as repo:
            return Path(repo.cache.local_cache_dir).resolve()
    except DvcException as error:
        hint = ": of a project without git DVC needs to know, `dvc config --local core.no_scm true`"
        text = " ".join(str(error).split())
        raise UserError(f"DVC: {text}{hint if 'not a git repository' in text else ''}") from None


def named_paths(project: Path, config: Any) -> list[str]:
    """The relative paths that exist in the project, among the values of a configuration and the dependencies in dvc.yaml."""
    stages = yaml.safe_load((project / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    words = {*_words(config), *_words([stage.get("deps", []) for stage in stages.values()])}
    return sorted(word for word in words if _is_relative_path(project, word))


def _words(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _words(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _words(value)


def _is_relative_path(project: Path, word: str) -> bool:
    if not word or "\0" in word or len(word) > 1000 or Path(word).is_absolute():
        return False
    with suppress(OSError):  # a text too long for a name
        return (project / word).exists()
    return False
