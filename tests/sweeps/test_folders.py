"""Where a sweep's jobs go."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.common.errors import UserError
from stages.sweeps.launcher import folder_of_sweep


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder, which is the current one."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def test_by_default_a_new_one_of_the_second() -> None:
    place, others = folder_of_sweep(["hydra/launcher=joblib"])
    assert place.parent == Path("multirun") and len(place.name) == len("2026-11-21_19-40-49") and others == ["hydra/launcher=joblib"]
    place.mkdir(parents=True)
    assert folder_of_sweep([])[0] != place


@pytest.mark.parametrize("name", ["multirun/presets", "'multirun/presets'", "multirun/a/../presets", "../elsewhere"])
def test_a_folder_with_a_name(here: Path, name: str) -> None:
    place, others = folder_of_sweep([f"hydra.sweep.dir={name}", "hydra.launcher.n_jobs=2"])
    assert place == Path("../elsewhere" if "elsewhere" in name else "multirun/presets") and others == ["hydra.launcher.n_jobs=2"]
    (here / place).mkdir(parents=True)
    assert folder_of_sweep([f"hydra.sweep.dir={name}"])[0] == place  # empty
    (here / place / "0").mkdir()
    with pytest.raises(UserError, match=r"^hydra.sweep.dir: .* expected a folder that is empty, or not there$"):
        folder_of_sweep([f"hydra.sweep.dir={name}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hydra.sweep.dir=sweeps/a", "'sweeps/a' is not allowed; expected a folder in multirun/, or outside the project"),
        ("hydra.sweep.dir=multirun/../data", "expected a folder in multirun/"),
        ("hydra.sweep.dir=multirun", "expected a folder in multirun/"),
        ("hydra.sweep.dir=.", "expected a folder in multirun/"),
        ("hydra.sweep.dir=multirun/${now:%H}", "expected a folder, e.g. multirun/presets"),
        ("hydra.sweep.dir=", "expected a folder, e.g. multirun/presets"),
        ("hydra.sweep.subdir=x", "hydra.sweep.subdir: cannot be set"),
    ],
)
def test_other_folders_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        folder_of_sweep([override])
    assert message in str(error.value)
