"""The stage `accuracy_aware` on a net with one culprit: every parameter, and what is written."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from stages import accuracy_aware
from stages.common.errors import UserError
from stages.configuration.loading import load_config
from stages.configuration.schema import AccuracyAware, BudgetMetric, Cluster, Config
from stages.measurement import fidelity
from stages.runtime.engine import core
from stages.runtime.metrics import Accuracy, ReferenceError
from stages.search.reversion.budget import Budget, Goal, Parts, divide
from stages.search.reversion.search import Reversion
from stages.search.reversion.setup import mixed_candidate
from stages.search.reversion.trace import State, Step
from stages.search.setup import base_candidate, make_problem
from tests.project import Project, copy_project
from tests.search.problems import Drawn
from tests.search.reverting import LAYERS, culprit_model

COUNT, CALIBRATION = 220, 20
KEYS = """\
model: {{name: tiny, path: tiny.xml}}
data: {{calibration: {{path: tiny.npz}}, calibration_size: {calibration}}}
evaluate: {{noise_samples: 0, benchmark: {{enabled: false}}}}
metric: {{error: {{_target_: stages.runtime.metrics.ReferenceError}}}}
layerwise_tuning: {{use_layerwise_tuning: {tuning}}}
accuracy_aware: {{enabled: true, tune_hyperparams: true}}
"""
OPTIONS = ("model: local", "data: arrays", "metric: accuracy", "tracking: disabled")
BEFORE = ("prepare", "collect_statistics", "quantize", "correct_bias", "evaluate")
RUN = """\
import importlib, sys
from stages import config
from stages.configuration.loading import load_config
from stages.stage import guarded
config.main()
for name in sys.argv[1:]:
    if code := guarded(name, lambda: importlib.import_module(f"stages.{name}").main(load_config())):
        sys.exit(code)
"""
ACCURACY = (BudgetMetric("accuracy"),)
WRITTEN = ("model.xml", "model.bin", "quantizers.json", "corrections.json", "result.json", "trace.json", "samples.npz")


def made(folder: Path, *, tuning: bool = False) -> Project:
    """A project in which everything before the search is done."""
    project = copy_project(folder)
    model = culprit_model()
    ov.save_model(model, project.root / "tiny.xml", compress_to_fp16=False)
    images = Drawn(COUNT).inputs[:, 0]
    labels = outputs(model, images).argmax(axis=1)
    np.savez(project.root / "tiny.npz", x=images, y=labels)
    project.params(KEYS.format(calibration=CALIBRATION, tuning=str(tuning).lower()), *OPTIONS)
    outcome = project.run(sys.executable, "-c", RUN, *BEFORE)
    assert outcome.code == 0, outcome.output
    return project


def outputs(model: ov.Model | Path, images: np.ndarray, precision: str = "f32") -> np.ndarray:
    compiled = ov.Core().compile_model(
        model, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT"} | ({} if precision == "default" else {"INFERENCE_PRECISION_HINT": precision})
    )
    return np.concatenate([np.array(compiled(image[None])[0]) for image in images])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project of most tests; they share its journal."""
    return made(tmp_path_factory.mktemp("aware") / "project")


@pytest.fixture
def config(built: Project, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The configuration of `built`, in its folder; what an earlier test has found is gone."""
    monkeypatch.chdir(built.root)
    shutil.rmtree(built.root / "build" / "accuracy_aware", ignore_errors=True)
    return load_config()


def search(config: Config, cluster: Cluster | None = None, **settings: Any) -> dict[str, Any]:
    """Run the stage in this process; what result.json then holds. By default on accuracy, of which 7 points may be lost on its samples."""
    chosen: dict[str, Any] = {"enabled": True, "metrics": list(ACCURACY), "maximal_drop": 0.07, "acceptance": "point"} | settings
    accuracy_aware.main(dataclasses.replace(config, accuracy_aware=AccuracyAware(**chosen), cluster=cluster or config.cluster))
    return read("result.json")


def read(name: str) -> Any:
    return json.loads(Path("build/accuracy_aware", name).read_text())


def reverted(result: dict[str, Any]) -> list[str]:
    return [entry["layer"] for entry in result["reverted"]]


def bits(name: str) -> set[tuple[str, int]]:
    """Layers and ports that are quantized."""
    return {(place["name"], place["port"]) for entry in read(name)["quantizers"] for place in entry["layers"]}


# ------------------------------------------------------------------------------------------- what is written


def test_the_culprit_returns_to_floating_point_and_what_was_judged_is_what_is_written(config: Config) -> None:
    found = search(config)
    assert reverted(found) == ["conv3"] and found["holds"] and found["quantized"] == LAYERS
    assert found["before"]["accuracy"] > 0.07 >= found["metrics"]["accuracy"]["drop"]
    check_model(config)
    assert ("conv3", 0) not in bits("quantizers.json") and ("conv2", 0) in bits("quantizers.json")
    (entry,) = (entry for entry in read("quantizers.json")["float"] if entry["name"] == "conv3" and entry["port"] == 0)
    assert entry["reason"] == "reverted to keep the accuracy budget"
    assert "conv3" not in {layer["name"] for layer in read("corrections.json")["corrected"]}
    report = json.loads(Path("build/reports/accuracy_aware.json").read_text())
    assert (report["holds"], report["reverted_layers"]) == (1, 1)
    assert (report["accuracy"], report["accuracy.drop"]) == (found["judged"]["accuracy"]["int8"], found["judged"]["accuracy"]["drop"])


def test_the_chosen_model_is_compared_with_what_it_says(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    of_int8 = json.loads(Path("build/evaluate/evaluation.json").read_text())["fidelity"]
    seen: list[tuple[Any, ...]] = []

    def check(*arguments: Any) -> dict[str, Any]:
        seen.append(arguments)
        return {"ratio": 0.5, "warning": None}

    monkeypatch.setattr(fidelity, "check", check)
    search(config)
    assert read("fidelity.json") == {"ratio": 0.5, "warning": None}
    ((model, engine, samples, precision),) = seen
    stored = {node.get_friendly_name() for node in core().read_model("build/accuracy_aware/model.xml").get_ops()}
    assert {node.get_friendly_name() for node in model.get_ops()} == stored
    assert engine == config.engine and len(samples) == config.evaluate.fidelity_samples and precision == "default"
    search(config, maximal_drop=1.0)  # nothing is reverted: it is the model of evaluate
    assert read("fidelity.json") == of_int8 and len(seen) == 1
    search(dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, fidelity_samples=0)))
    assert read("fidelity.json") == {} and len(seen) == 1


def check_model(config: Config) -> None:
    """The model on disk does what samples.npz and result.json say."""
    with np.load("tiny.npz") as file:
        images, labels = file["x"][CALIBRATION:], file["y"][CALIBRATION:]
    found = outputs(Path("build/accuracy_aware/model.xml"), images, "default")
    fp32 = outputs(Path("build/prepare/model.xml"), images)
    with np.load("build/accuracy_aware/samples.npz") as file:
        np.testing.assert_array_equal(file["accuracy_aware/accuracy"][:, 0], found.argmax(axis=1) == labels)
        error = np.linalg.norm(found - fp32, axis=1) / np.linalg.norm(fp32, axis=1)
        np.testing.assert_allclose(file["accuracy_aware/error"][:, 0], error, rtol=1e-4, atol=1e-6)
    result, parts = read("result.json"), divide(len(images), config.accuracy_aware.held_out_ratio, 1.0, config.seed)
    right = found.argmax(axis=1) == labels
    assert result["values"]["accuracy"] == pytest.approx(right.mean())
    assert result["samples"] == {"search": len(parts.search), "held_out": len(parts.held_out)} == {"search": 160, "held_out": 40}
    for name, values in {"accuracy": right, "error": error}.items():
        if name in result["metrics"]:
            assert result["metrics"][name]["value"] == pytest.approx(values[list(parts.search)].mean(), rel=1e-3)
            assert result["metrics"][name]["held_out"]["value"] == pytest.approx(values[list(parts.held_out)].mean(), rel=1e-3)


def test_layers_that_were_tuned_keep_their_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = made(tmp_path / "tuned", tuning=True)
    monkeypatch.chdir(project.root)
    config = load_config()
    tuned = make_problem(config).tuned
    assert tuned is not None and tuned.layers
    assert reverted(search(config)) == ["conv3"]
    check_model(config)
    # Of what is not corrected, nothing is tuned either.
    search(config, base_algorithm="MinMaxQuantization", on_failure="keep")
    check_model(config)
    assert read("corrections.json") == {"algorithm": None, "corrected": [], "left": read("corrections.json")["left"]}


def test_a_model_that_keeps_the_budget_is_taken_as_it_is(config: Config) -> None:
    found = search(config, maximal_drop=0.9)
    assert found["holds"] and found["models_tried"] == 1 and not found["reverted"]
    for name in ("model.xml", "model.bin", "corrections.json"):
        assert Path("build/accuracy_aware", name).read_bytes() == Path("build/correct_bias", name).read_bytes()


def test_disabled_it_says_so_and_loads_nothing(built: Project) -> None:
    code = """\
import dataclasses, sys
from stages import accuracy_aware
from stages.configuration.loading import load_config
found = load_config()
assert accuracy_aware.main(dataclasses.replace(found, accuracy_aware=type(found.accuracy_aware)())) == {"enabled": False}
assert not {"openvino", "numpy", "nncf"} & set(sys.modules), sorted(sys.modules)
"""
    outcome = built.run(sys.executable, "-c", code)
    assert outcome.code == 0, outcome.output
    assert json.loads((built.root / "build/accuracy_aware/result.json").read_text()) == {"enabled": False}
    assert json.loads((built.root / "build/reports/accuracy_aware.json").read_text()) == {}


# ------------------------------------------------------------------------------------------------ parameters


def test_a_relative_drop_is_a_share_of_the_baseline(config: Config) -> None:
    found = search(config, metrics=[BudgetMetric("accuracy", baseline_value=0.5)], drop_type="relative", maximal_drop=0.1)
    assert found["metrics"]["accuracy"]["limit"] == pytest.approx(0.05)
    absolute = search(config, metrics=[BudgetMetric("accuracy", baseline_value=0.5)], maximal_drop=0.1)
    assert absolute["metrics"]["accuracy"]["limit"] == pytest.approx(0.1)


def test_given_baselines_are_compared_on_a_subset(config: Config) -> None:
    metrics = [BudgetMetric("accuracy", baseline_value=0.96)]
    half = search(config, metrics=metrics, metric_subset_ratio=0.5, on_failure="keep")
    assert half["samples"] == {"search": 80, "held_out": 40}
    assert half["metrics"]["accuracy"]["baseline"] == half["metrics"]["accuracy"]["held_out"]["baseline"] == 0.96
    assert search(config, metric_subset_ratio=0.5)["samples"]["search"] == 160  # nothing is given: all are compared


def test_metrics_have_budgets_and_directions_of_their_own(config: Config) -> None:
    both = [BudgetMetric("accuracy", maximal_drop=0.5), BudgetMetric("error", maximal_drop=0.03)]
    found = search(config, metrics=both)
    assert found["metrics"].keys() == {"accuracy", "error"}
    assert found["metrics"]["accuracy"]["limit"] == 0.5
    error = found["metrics"]["error"]
    # Lower is better, and FP32's own error is zero.
    assert (error["baseline"], error["limit"], error["higher_is_better"]) == (0.0, 0.03, False)
    assert found["holds"] and 0.0 < error["drop"] == error["value"] <= 0.03 and len(found["reverted"]) > 1
    assert search(config, metrics=[], maximal_drop=0.9)["metrics"].keys() == {"accuracy", "error"}  # all that are computed


def test_a_budget_may_have_to_hold_on_samples_that_nobody_has_seen(config: Config) -> None:
    point = search(config, maximal_drop=0.12)
    found = search(config, maximal_drop=0.12, acceptance="confident")
    assert point["acceptance"] is None
    accepted = found["acceptance"]
    assert accepted["holds"] and accepted["confidence"] == config.evaluate.confidence and accepted["samples"] is None
    assert found["metrics"]["accuracy"]["drop"] < accepted["bounds"]["accuracy"] <= 0.12
    few = search(config, maximal_drop=0.0101, acceptance="confident", on_failure="keep")
    assert not few["acceptance"]["holds"] and few["acceptance"]["bounds"]["accuracy"] > 0.0101
    plain = search(config, maximal_drop=0.0101, on_failure="keep")
    assert (few["holds"], reverted(few)) == (plain["holds"], reverted(plain))  # then it is what these samples say


def test_a_relative_drop_from_zero_is_refused(config: Config) -> None:
    with pytest.raises(UserError, match=r"drop_type: 'relative' is not allowed as the baseline of error is 0; expected absolute"):
        search(config, metrics=[BudgetMetric("error")], drop_type="relative")


def test_more_ranking_samples_than_there_are_is_refused_before_any_work(config: Config) -> None:
    journal = journal_lines(Path())
    with pytest.raises(UserError, match=r"ranking_subset_size: 161 is not allowed; expected at most 160, the samples that the search"):
        search(config, ranking_subset_size=161)
    assert not Path("build/accuracy_aware").exists() and journal_lines(Path()) == journal


def test_drops_of_shares_are_told_in_points_and_others_in_their_unit(capsys: pytest.CaptureFixture[str]) -> None:
    goals = (Goal("accuracy", Accuracy(), 0.899, 0.01), Goal("error", ReferenceError(), 0.0, 0.03))
    step = Step(1, "revert", ("conv",), 1, {"accuracy": 0.02625, "error": 0.128}, False, "exceeds the budget")
    accuracy_aware._print(Budget(goals), step)
    told = "accuracy_aware: revert conv: accuracy drops by 2.62 points, error drops by 0.128; exceeds the budget\n"
    assert capsys.readouterr().err == told


def test_a_budget_that_cannot_be_met_fails_unless_it_is_to_be_kept(config: Config) -> None:
    impossible: dict[str, Any] = {"metrics": [BudgetMetric("error")], "maximal_drop": 0.0, "restore": "activations"}
    with pytest.raises(UserError, match=r"^the accuracy budget cannot be met: error drops by .* where 0 is allowed;"):
        search(config, **impossible)
    failed = read("result.json")
    kept = search(config, **impossible, on_failure="keep")
    assert kept == failed and not kept["holds"]
    assert 0 < kept["metrics"]["error"]["drop"] < kept["before"]["error"]  # the best that was found
    check_model(config)


def test_only_activations_return_on_request(config: Config) -> None:
    search(config, restore="activations")
    assert ("conv3", 1) in bits("quantizers.json") and ("conv3", 0) not in bits("quantizers.json")


def test_without_held_out_samples_all_are_searched(config: Config) -> None:
    found = search(config, held_out_ratio=0.0)
    assert found["samples"] == {"search": 200, "held_out": 0}
    assert found["confirmed"] is None and found["metrics"]["accuracy"]["held_out"] is None


def test_held_out_samples_contradict_a_budget_that_was_kept_by_choosing(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search sees the samples that INT8 reads as FP32 does, the rest is held out."""
    rows = base_candidate(config).rows["accuracy"][:, 0]
    same, other = (tuple(int(place) for place in np.flatnonzero(rows == value)) for value in (1.0, 0.0))
    monkeypatch.setattr("stages.search.reversion.setup.divide", lambda *_: Parts(same, other))
    found = search(config)
    assert found["holds"] and found["confirmed"] is False
    assert found["metrics"]["accuracy"]["held_out"]["drop_low"] > 0.07


def test_time_is_limited(config: Config) -> None:
    found = search(config, max_minutes=1e-6, on_failure="keep")
    assert found["stopped"] == "accuracy_aware.max_minutes, which is 1e-06, is used up"
    assert not found["holds"] and not found["reverted"]


def test_iterations_are_limited(config: Config) -> None:
    found = search(config, metrics=[BudgetMetric("error")], maximal_drop=0.01, max_iter_num=1, on_failure="keep")
    assert found["stopped"] == "accuracy_aware.max_iter_num, which is 1, is reached" and found["models_tried"] == 2


def test_minmax_starts_without_bias_correction(config: Config) -> None:
    found = search(config, base_algorithm="MinMaxQuantization", on_failure="keep")
    assert (found["start"], found["bias_correction"]) == ("MinMaxQuantization", None)
    assert read("corrections.json")["corrected"] == []
    assert search(config)["bias_correction"] == "fast" and read("corrections.json")["corrected"]


def test_tunable_starts_from_the_quantizers_that_are_named(config: Config) -> None:
    quantizers = json.loads(Path("build/quantize/quantizers.json").read_text())
    quantizers["quantizers"] = [entry for entry in quantizers["quantizers"] if "conv5" not in {place["name"] for place in entry["layers"]}]
    Path("conf/mine.json").write_text(json.dumps(quantizers))
    found = search(config, base_algorithm="TunableQuantization", quantizers="conf/mine.json")
    assert found["start"] == "conf/mine.json" and reverted(found) == ["conv3"]
    assert {name for name, _ in bits("quantizers.json")} == {"conv0", "conv1", "conv2", "conv4", "head"}
    Path("conf/mine.json").write_text(json.dumps(quantizers).replace("conv1", "conv9"))
    with pytest.raises(UserError, match=r"accuracy_aware.quantizers: conf/mine.json does not fit this model .*conv9"):
        search(config, base_algorithm="TunableQuantization", quantizers="conf/mine.json")


def test_the_mixed_preset_is_tried_on_request(config: Config) -> None:
    def phases() -> set[str]:
        return {row["phase"] for row in read("trace.json")}

    search(config, convert_to_mixed_preset=True)
    assert "mixed preset" in phases()
    problem, base = make_problem(config), base_candidate(config).candidate
    wanted = dataclasses.replace(config, accuracy_aware=AccuracyAware(convert_to_mixed_preset=True))
    mixed = mixed_candidate(wanted, problem, base)
    assert mixed is not None and any(not entry.scheme.symmetric for entry in mixed.plan.quantizers)
    assert mixed_candidate(config, problem, base) is None
    search(config)
    assert "mixed preset" not in phases()


def test_confidence_seed_and_the_samples_reach_the_search(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Reversion] = []

    class Seen(Reversion):
        def run(self, *arguments: Any) -> State:
            seen.append(self)
            return super().run(*arguments)

    monkeypatch.setattr("stages.search.reversion.search.Reversion", Seen)
    other = dataclasses.replace(config, seed=9, evaluate=dataclasses.replace(config.evaluate, confidence=0.8))
    search(other, maximal_drop=0.9, held_out_ratio=0.4)
    (found,) = seen
    assert (found.confidence, found.seed, found.settings.held_out_ratio) == (0.8, 9, 0.4)
    assert found.positions == divide(COUNT - CALIBRATION, 0.4, 1.0, 9).search


def test_estimators_and_bias_correction_are_tuned_on_request(config: Config) -> None:
    """Nothing but the culprit helps here, so that what is tried is remembered, and not taken."""
    before = journal_lines(Path())
    found = search(config, tune_hyperparams=True)
    tried = journal_lines(Path()) - before
    assert found["holds"] and tried >= 3  # quantiles, and the accurate correction


def test_a_search_with_another_budget_goes_on_from_what_is_known(config: Config) -> None:
    def evaluations(drop: float) -> tuple[int, int]:
        settings = AccuracyAware(enabled=True, metrics=[BudgetMetric("error")], maximal_drop=drop, on_failure="keep")
        found = accuracy_aware.main(dataclasses.replace(config, accuracy_aware=settings, seed=5))
        return found["evaluated"], found["remembered"]

    first, again, tighter = evaluations(0.05), evaluations(0.05), evaluations(0.03)
    assert first[0] > 0 and again == (0, sum(first)) and tighter[1] > 0


def journal_lines(root: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (root / "build" / ".journal").rglob("*.jsonl"))
