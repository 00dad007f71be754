"""Sweeps through the real thing: Hydra's launchers, DVC in every job's copy, MLflow."""

from __future__ import annotations

import errno
import json
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.config import Config

from stages import promote, translate_pot
from stages.common import artifacts
from stages.common.errors import UserError
from stages.configuration.overrides import Combination, combinations
from stages.sweeps import copies, job
from stages.sweeps.preparation import shared_stages
from tests.project import Outcome, Project, copy_project
from tests.sweeping import PARAMS, WORK, latest, stages_run, sweep, sweep_project


def rows(project: Project, query: str) -> list[tuple[str, ...]]:
    with sqlite3.connect(project.root / "mlflow.db") as database:
        return database.execute(query).fetchall()


def test_a_failed_job_does_not_stop_the_others(swept: tuple[Project, Outcome]) -> None:
    project, outcome = swept
    assert outcome.code == 1, outcome.output
    lines = outcome.output.splitlines()
    assert any(line.startswith("1  preset=fast: FAILED, config: error: quantization.preset: 'fast' is not allowed") for line in lines)
    assert "2 of 3 jobs succeeded" in outcome.output
    assert "Traceback" not in outcome.output
    # The others' rows: accuracy, drop, speed-up, what stayed float, all as in the job's own files.
    for number, preset in ((0, "performance"), (2, "mixed")):
        (line,) = [line for line in lines if line.startswith(f"{number}  preset={preset} ")]
        evaluation = json.loads((latest(project) / str(number) / "build/evaluate/evaluation.json").read_text())
        accuracy = evaluation["metrics"]["accuracy"]
        assert f"{100 * accuracy['int8']:.2f} %" in line
        assert f"{100 * accuracy['drop'] + 0.0:.2f} points" in line
        ratios = 1 if evaluation["precisions"]["default"] == "f32" else 2  # there is one precision to compare with, or two
        assert line.count("x") >= ratios and " MB " in line
        assert " ms " not in line  # of jobs that were timed minutes apart
    assert any(entry.startswith("best: ") for entry in lines)


def test_shared_stages_run_once(swept: tuple[Project, Outcome]) -> None:
    ran = list(stages_run(swept[0]))
    assert ran == [*(f"0 {stage}" for stage in ("config", *WORK, "track")), *(f"2 {stage}" for stage in ("config", *WORK[2:], "track"))]


def test_the_workspace_is_untouched(swept: tuple[Project, Outcome]) -> None:
    project, _ = swept
    assert "preset" not in (project.root / "params.yaml").read_text()
    assert not (project.root / "dvc.lock").exists()
    assert all(path.name.startswith(".") for path in (project.root / "build").iterdir())


def test_results_are_in_the_projects_mlflow(swept: tuple[Project, Outcome]) -> None:
    project, outcome = swept
    found = rows(
        project, "SELECT experiments.name, runs.name FROM runs JOIN experiments USING (experiment_id) WHERE runs.status = 'FINISHED'"
    )
    assert sorted((experiment, name.split("·")[0]) for experiment, name in found) == [
        ("quantization", "mixed"),
        ("quantization", "performance"),
        ("quantization sweeps", "quantization.preset=performance,fast,mixed"),
    ]
    (page,) = [line.split("/runs/")[1].split("/")[0] for line in outcome.output.splitlines() if "comparison.html?" in line]
    assert (project.root / "mlartifacts" / page / "artifacts" / "comparison.html").is_file()
    assert not list(latest(project).glob("*/mlflow.db*"))


def test_again_and_promoted(swept: tuple[Project, Outcome]) -> None:
    """The second sweep takes all from the cache; a promoted job's results come from there, too."""
    project, _ = swept
    again = sweep(project, "quantization.preset=mixed,performance")
    assert again.code == 0, again.output
    assert list(stages_run(project)) == ["0 config", "0 track", "1 config", "1 track"]
    assert len(rows(project, "SELECT run_uuid FROM runs")) == 4  # the new comparison is the only new one
    promoted = project.run(sys.executable, "-m", "stages.promote", "0")
    assert promoted.code == 0, promoted.output
    assert "+  preset: mixed" in promoted.output
    text = (project.root / "params.yaml").read_text()
    assert "# stays where it is" in text
    built = project.repro()
    assert (built.code, built.stages) == (0, ["config", "track"]), built.output
    for name in ("model.xml", "model.bin"):
        mine = project.root / "build" / "correct_bias" / name
        assert mine.read_bytes() == (latest(project) / "0" / "build" / "correct_bias" / name).read_bytes()
    # Edits made since are not overwritten.
    project.write("params.yaml", text + "seed: 3\n")
    refused = project.run(sys.executable, "-m", "stages.promote", "1")
    assert (refused.code, "was edited after the sweep began" in refused.output) == (1, True)
    assert project.run(sys.executable, "-m", "stages.promote", "1", "--force").code == 0
    assert "seed" not in (project.root / "params.yaml").read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("quantization.presett=mixed", "quantization.presett"),
        ("target_device=tpu,cpu", "there is no option 'tpu' in conf/target_device/"),
        ("~quantization.preset", "cannot delete"),
        ("quantization.preset=[a", "is no override of the form key=value"),
        ("hydra/launcher=nothing", "pip install -e '.[sweep]'"),
        ("hydra.sweep.dir=elsewhere", "expected a folder in multirun/, or outside the project"),
        ("hydra.sweep.subdir=mine", "cannot be set"),
    ],
)
def test_mistakes_stop_before_anything_runs(project: Project, override: str, message: str) -> None:
    outcome = sweep(project, override)
    assert outcome.code == 1
    assert outcome.output.splitlines()[-1].startswith("sweep: error: ") and message in outcome.output
    assert "Traceback" not in outcome.output
    assert not list((project.root / "multirun").glob("*/[0-9]*"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [["joblib", "hydra.launcher.n_jobs=2"], ["submitit_local", "hydra.launcher.timeout_min=10"]])
def test_parallel_jobs_share_what_they_have_in_common(tmp_path: Path, launcher: list[str]) -> None:
    project = sweep_project(tmp_path, PARAMS + "seed: 1\n")
    name, setting = launcher
    outcome = sweep(project, "quantization.preset=performance,fast,mixed", f"hydra/launcher={name}", setting)
    assert outcome.code == 1, outcome.output
    assert "2 of 3 jobs succeeded" in outcome.output
    ran = [line.split()[1] for line in stages_run(project)]
    assert {stage: ran.count(stage) for stage in WORK} == {**dict.fromkeys(WORK, 2), "prepare": 1, "collect_statistics": 1}
    assert len(rows(project, "SELECT run_uuid FROM runs WHERE status = 'FINISHED'")) == 3


@pytest.mark.slow
def test_groups_keys_and_searches_at_once(tmp_path: Path) -> None:
    """Every combination of an option and a switch; what a search made has a row of its own."""
    project = sweep_project(tmp_path, PARAMS + "accuracy_aware: {maximal_drop: 0.05, on_failure: keep}\ntarget_device: {name: ANY}\n")
    outcome = sweep(project, "target_device=any,cpu", "accuracy_aware.enabled=false,true", "evaluate.benchmark.seconds=0.3")
    assert outcome.code == 0, outcome.output
    assert "note: target_device.name: 'ANY' of params.yaml gives way to 'CPU' of the chosen option" in outcome.output
    lines = outcome.output.splitlines()
    for number, label in enumerate(f"target_device={device} enabled={on}" for device in ("any", "cpu") for on in ("false", "true")):
        rows = [line for line in lines if line.startswith(f"{number}  {label}") and " MB " in line]
        assert len(rows) == (2 if label.endswith("true") else 1)
        build = latest(project) / str(number) / "build"
        if label.endswith("true"):
            result = json.loads((build / "accuracy_aware" / "result.json").read_text())
            accuracy = result["judged"]["accuracy"]
            assert result["reverted"] and accuracy["drop"] < 0.2 and f"{100 * accuracy['int8']:.2f} %" in rows[1]
            assert int(rows[1].split()[-1]) > int(rows[0].split()[-3])  # left float
    assert [line.split()[1] for line in stages_run(project)].count("prepare") == 1


# ------------------------------------------------------------------------------------------------ parts


@pytest.fixture
def inside(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The project is the current folder."""
    monkeypatch.chdir(project.root)
    return project


@pytest.mark.usefixtures("inside")
def test_jobs_are_named_by_what_differs() -> None:
    assert combinations(["quantization.preset=performance,mixed", "seed=1"])[1] == Combination(
        ("quantization.preset=mixed", "seed=1"), ("preset=mixed",)
    )
    pairs = combinations(["quantization.weights.bits=8,4", "quantization.activations.bits=8,4"])
    assert [pair.differences for pair in pairs][1] == ("weights.bits=8", "activations.bits=4")
    assert combinations([]) == [Combination((), ())]
    assert combinations(["seed=1,null", "evaluate.benchmark.enabled=true,false"])[3].differences == ("seed=null", "enabled=false")
    names = {combination.overrides[0] for combination in combinations(["target_device=glob(*)"])}
    assert names == {f"target_device={name}" for name in ("any", "cpu", "cpu_spr", "gna", "gpu", "npu", "template")}


@pytest.mark.parametrize(
    ("differences", "name"),
    [(("preset=mixed",), "mixed"), (("preset=mixed", "bits=4"), "mixed bits=4"), (("enabled=true",), "enabled=true"), ((), "")],
)
def test_runs_are_named_by_values_that_speak(differences: tuple[str, ...], name: str) -> None:
    assert job.Job(0, differences, ()).run_name == name


def test_jobs_meet_where_their_ways_part() -> None:
    first = {"prepare": "a", "quantize": "b", "evaluate": "c"}
    second = {"prepare": "a", "quantize": "b", "evaluate": "d"}
    third = {"prepare": "a", "quantize": "e", "evaluate": "f"}
    alone = {"prepare": "x", "quantize": "y", "evaluate": "z"}
    assert shared_stages([first, second, third, alone, {}]) == [
        (("prepare", "a"), ("quantize", "b")),
        (("prepare", "a"), ("quantize", "b")),
        (("prepare", "a"),),
        (),
        (),
    ]
    assert shared_stages([first, first]) == [(("evaluate", "c"),)] * 2


@pytest.fixture
def original(tmp_path: Path) -> Iterator[Path]:
    """A project with all kinds of files."""
    root = tmp_path / "one" / "project"
    files = [
        "conf/config.yaml",
        "code/mine.py",
        "code/weights.bin",
        "data/a.npz",
        ".hidden/b.npz",
        "build/evaluate/x.json",
        "mlflow.db",
        "net.xml",
    ]
    for name in [
        *files,
        ".dvc/config",
        ".dvc/cache/y",
        "dvc.yaml",
        "params.yaml",
        "data.dvc",
        "environment/pyvenv.cfg",
        "environment/lib/z.py",
    ]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "code" / "weights.bin").write_bytes(bytes(copies.LARGEST_COPY + 1))
    (root / "dvc.yaml").write_text("stages: {prepare: {deps: [data/a.npz]}}")
    (root / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    (tmp_path / "one" / "beside").mkdir()
    (tmp_path / "one" / "beside" / "net.onnx").write_text("")
    (tmp_path / "one" / "near.onnx").write_text("")
    (tmp_path / "one" / "near.weights").write_text("")
    yield root


def test_a_copy_has_its_own_code_and_finds_the_users_files(original: Path) -> None:
    config = {"model": {"path": "../beside/net.onnx"}, "data": ["../near.onnx", ".hidden/b.npz", "no such file"], "text": "x" * 5000}
    names = copies.named_paths(original, config)
    assert names == ["../beside/net.onnx", "../near.onnx", ".hidden/b.npz", "data/a.npz"]
    copy = original / "multirun" / "now" / "0"
    copies.copy_project(original, copy, "seed: 1\n", original / ".dvc" / "cache", names)
    for name in ("conf/config.yaml", "code/mine.py", "net.xml"):
        assert (copy / name).resolve() == copy / name
    for name in ("data/a.npz", "code/weights.bin", "environment/lib/z.py", *names):
        assert (copy / name).resolve() == (original / name).resolve()
    assert (copy / "../near.weights").exists()  # a model's other files
    assert (copy / "params.yaml").read_text() == "seed: 1\n"
    assert (original / "params.yaml").read_text() == "params.yaml"
    assert not any((copy / name).exists() for name in ("mlflow.db", "build/evaluate", ".dvc/cache", "data.dvc", "multirun"))
    assert "analytics = false" in (copy / ".dvc" / "config").read_text()
    (copy / "build" / ".journal" / "found").write_text("")
    assert (original / "build" / ".journal" / "found").exists()


def test_a_defect_is_told_by_its_own_last_words(tmp_path: Path) -> None:
    """Not by DVC's, which say no more than that a stage failed."""
    (tmp_path / "0").mkdir()
    stage = "import sys; sys.exit(\"Running stage 'tune':\\nTraceback ...\\nKeyError: 3\\nERROR: failed to reproduce\")"
    (tmp_path / "0" / "dvc.py").write_text(stage)  # stands for DVC
    job.write(tmp_path, job.Job(0, (), ()))
    job.run(tmp_path, 0)
    assert job.result_of(tmp_path, 0).error == "tune: KeyError: 3"


def test_a_job_that_has_no_room_for_its_result_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    job.write(tmp_path, job.Job(0, (), (), error="config: error: wrong"))
    monkeypatch.setattr(artifacts, "write_json", full)
    job.run(tmp_path, 0)
    told = "FAILED, config: error: wrong, but cannot say so: No space left on device"
    assert told in capsys.readouterr().out


def test_a_full_disk_keeps_params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, text in ((".", "seed: 1\n"), ("multirun/now", "seed: 1\n"), ("multirun/now/0", "seed: 2\n")):
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, "params.yaml").write_text(text)
    job.write_result(Path("multirun/now"), 0, job.Result(None, 1.0))

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("stages.common.artifacts.os.fsync", full)
    assert promote.main(["0"]) == 1
    assert capsys.readouterr().err == "promote: error: disk full while writing params.yaml\n"
    Path("pot.json").write_text('{"model": {"model_name": "net"}, "compression": {"algorithms": [{"name": "DefaultQuantization"}]}}')
    monkeypatch.setattr(sys, "argv", ["translate_pot", "pot.json", "--write"])
    with pytest.raises(SystemExit, match=r"^1$"):
        translate_pot.main()
    assert capsys.readouterr().err.endswith("translate_pot: error: disk full while writing params.yaml\n")
    assert Path("params.yaml").read_text() == "seed: 1\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["multirun", "params.yaml", "pot.json"]


def test_a_job_that_was_killed_says_so(tmp_path: Path) -> None:
    assert job.result_of(tmp_path, 0).error == "did not start"
    job.log_of(tmp_path, 0).write_text("Running stage 'prepare':\n")
    assert job.result_of(tmp_path, 0).error == "was killed, or found the disk full"


def test_a_project_without_git(tmp_path: Path) -> None:
    """As of a downloaded zip; the message names what README does, and that is enough."""
    project = copy_project(tmp_path / "zip")
    (project.root / ".dvc" / "config.local").unlink()
    with pytest.raises(UserError, match=r"is not a git repository: of a project without git DVC needs to know, `dvc ") as error:
        copies.cache_folder(project.root)
    command = str(error.value).split("`")[1]
    assert f"`{command}`" in (project.root / "README.md").read_text()
    assert project.run(sys.executable, "-m", *command.split()).code == 0
    assert copies.cache_folder(project.root) == project.root / ".dvc" / "cache"


def test_a_copy_is_made_in_a_folder_with_any_letters(tmp_path: Path) -> None:
    project = Project(tmp_path / "Prüfung 模型")
    project.write(".dvc/config.local", "[core]\n    no_scm = true\n['remote \"größe\"']\n    url = /mnt/größe\n")
    project.write("a.py", "")
    copies.copy_project(project.root, tmp_path / "Kopie ü", "seed: 1\n", project.root / ".dvc/cache")
    read = Config(str(tmp_path / "Kopie ü" / ".dvc"))  # as DVC reads it
    assert read["cache"]["dir"] == str(project.root / ".dvc/cache")
    assert read["remote"]["größe"]["url"] == "/mnt/größe"
    # Why it is not written with DVC's own means: where they learn more letters than ASCII, they can be used.
    with pytest.raises(UnicodeEncodeError), Config(str(project.root / ".dvc")).edit("local") as own:
        own["cache"]["dir"] = str(project.root / ".dvc/cache")
