"""Every parameter of `tune` reaches what it is about."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stages.common.errors import UserError
from stages.configuration import schema
from stages.configuration.schema import Config, TargetDevice, Tune, TuneMetric, TuneSpace
from stages.configuration.schema import TuneBenchmark as Benchmark
from stages.configuration.target_device import ACTIVATIONS, WEIGHTS
from stages.quantization.placement.plan import Place, Plan
from stages.search.candidates import without
from stages.search.problem import Problem
from stages.search.tuning import setup
from stages.search.tuning.search import CONSTRAINED, FULL, Search, Start
from tests.built import config as built_config
from tests.quantization.reference_runs import composed
from tests.search.problems import small_candidate, small_plan, small_problem

SAMPLES = 60
TARGET = TargetDevice(**composed("any"))


@pytest.fixture(scope="module")
def problem() -> Problem:
    return small_problem(SAMPLES, reference=True)


@pytest.fixture(autouse=True)
def no_build_folder(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a build folder."""
    base = SimpleNamespace(candidate=small_candidate(problem))
    monkeypatch.setattr(setup, "base_candidate", lambda config: base)
    monkeypatch.setattr(setup, "make_problem", lambda config: problem)


def config(seed: int = 0, **tune: Any) -> Config:
    """A configuration with these settings of `tune`, in f32: all schemes are offered."""
    sections: dict[str, Any] = {"target_device": TARGET, "quantization": schema.Quantization()}
    sections["engine"] = schema.Engine(inference_precision="f32")
    return dataclasses.replace(built_config(), **sections, seed=seed, tune=Tune(**tune))


def search(settings: Config, problem: Problem) -> Search:
    space: Any = SimpleNamespace()
    session: Any = SimpleNamespace(problem=problem)
    return setup.make_search(settings, session, space)


def timing(name: str) -> Callable[[Search], Any]:
    return lambda found: getattr(found.goal.timing, name)


REACHES: dict[str, tuple[dict[str, Any], Callable[[Search], Any], Any]] = {
    "objective": ({"objective": "constrained"}, lambda found: found.goal.objective, CONSTRAINED),
    "accuracy_loss": ({"accuracy_loss": 2.5}, lambda found: found.goal.target.accuracy_loss, 0.025),
    "latency_reduce": ({"latency_reduce": 1.5}, lambda found: found.goal.target.speed_up, 1.5),
    "accuracy_weight": ({"accuracy_weight": 3.0}, lambda found: found.goal.target.accuracy_weight, 3.0),
    "latency_weight": ({"latency_weight": 3.0}, lambda found: found.goal.target.latency_weight, 3.0),
    "quantization_ratio_weight": ({"quantization_ratio_weight": 3.0}, lambda found: found.goal.target.quantized_weight, 3.0),
    "expected_quantization_ratio": ({"expected_quantization_ratio": 0.7}, lambda found: found.goal.target.expected_quantized, 0.7),
    "metrics": ({"metrics": [TuneMetric("error", 2.0)]}, lambda found: found.goal.baselines, (("error", 2.0),)),
    "no metrics": ({}, lambda found: found.goal.baselines, (("accuracy", None),)),
    "max_trials": ({"max_trials": 7}, lambda found: found.goal.max_trials, 7),
    "max_minutes": ({"max_minutes": 1.5}, lambda found: found.goal.max_seconds, 90.0),
    "no limit": ({"max_minutes": 0.0}, lambda found: found.goal.max_seconds, float("inf")),
    "stop_on_target": ({"stop_on_target": True}, lambda found: found.goal.stop_on_target, True),
    "batch_size": ({"batch_size": 3}, lambda found: found.goal.batch_size, 3),
    "eval_subset_size": ({"eval_subset_size": 9}, lambda found: sorted(found.goal.positions), list(range(9))),
    "all samples": ({}, lambda found: sorted(found.goal.positions), list(range(SAMPLES))),
    "stop_error": ({"stop_error": 0.2}, lambda found: found.goal.stop_error, 0.2),
    "n_initial_point": ({"n_initial_point": 4}, lambda found: found.settings.n_initial_point, 4),
    "gamma": ({"gamma": 0.5}, lambda found: found.settings.gamma, 0.5),
    "n_EI_candidates": ({"n_EI_candidates": 5}, lambda found: found.settings.n_EI_candidates, 5),
    "seed": ({"seed": 8}, lambda found: found.settings.seed, 8),
    "the general seed": ({}, lambda found: found.settings.seed, 0),
    "acceptance": ({"acceptance": "point"}, lambda found: found.goal.acceptance, "point"),
    "confident": ({}, lambda found: (found.goal.acceptance, found.goal.confidence), ("confident", 0.95)),
    "strategy": ({"strategy": "plan"}, lambda found: found.goal.strategy, "plan"),
    "no benchmark": ({"benchmark": Benchmark(enabled=False)}, lambda found: found.goal.timing, None),
    "duration": ({"benchmark": Benchmark(duration_seconds=3.0)}, timing("seconds"), 3.0),
    "hint": ({"benchmark": Benchmark(hint="throughput")}, timing("hint"), "THROUGHPUT"),
    "requests": ({"benchmark": Benchmark(hint="throughput", requests=3)}, timing("requests"), 3),
    "streams": ({"benchmark": Benchmark(streams=3)}, timing("streams"), 3),
    "threads": ({"benchmark": Benchmark(threads=3)}, timing("threads"), 3),
    "batch": ({"benchmark": Benchmark(batch=3)}, timing("batch"), 3),
    "where": ({"benchmark": Benchmark(where="workers")}, lambda found: found.goal.time_here, False),
    "here": ({}, lambda found: found.goal.time_here, True),
}


@pytest.mark.parametrize("name", REACHES)
def test_it_reaches_the_search(problem: Problem, name: str) -> None:
    changes, reached, expected = REACHES[name]
    assert reached(search(config(**changes), problem)) == expected


def test_every_parameter_is_tested() -> None:
    """Those that are not above have tests of their own."""
    elsewhere = {"enabled", "space", "trials_load_method", "child_runs", "plans"}
    changed = [changes for changes, _, _ in REACHES.values()]
    assert {field.name for field in dataclasses.fields(Tune)} == elsewhere | {name for changes in changed for name in changes}
    defaults = dataclasses.asdict(Benchmark())
    measured = [dataclasses.asdict(changes["benchmark"]) for changes in changed if "benchmark" in changes]
    assert {name for values in measured for name, value in values.items() if value != defaults[name]} == defaults.keys()


def test_the_seed_draws_the_order_of_the_samples(problem: Problem) -> None:
    assert search(config(seed=1), problem).goal.positions != search(config(seed=2), problem).goal.positions


def test_more_samples_than_there_are_is_one_line(problem: Problem) -> None:
    with pytest.raises(UserError, match=r"tune\.eval_subset_size: 61 is not allowed; expected at most 60"):
        search(config(eval_subset_size=61), problem)
    with pytest.raises(UserError, match=r"tune\.space\.stat_subset_size: 21 is not allowed; expected at most 20"):
        setup.tuning_problem(config(space=TuneSpace(stat_subset_size=21)))


def test_part_of_the_statistics_makes_another_problem(problem: Problem) -> None:
    part = setup.tuning_problem(config(space=TuneSpace(stat_subset_size=5)))
    assert (part.statistics.samples, problem.statistics.samples) == (5, 20)
    assert part.key != problem.key
    assert setup.tuning_problem(config(space=TuneSpace(stat_subset_size=20))) is problem


def test_preset_of_the_space_or_of_the_quantization(problem: Problem) -> None:
    def modes(settings: Config) -> set[str]:
        plan = setup.make_space(settings, problem).offer.plan
        return {quantizer.scheme.mode for quantizer in plan.quantizers if quantizer.kind == ACTIVATIONS}

    assert modes(config()) == {"symmetric"}
    assert modes(config(space=TuneSpace(preset="mixed"))) == {"asymmetric"}
    mixed = dataclasses.replace(config(), quantization=schema.Quantization(preset="mixed"))
    assert modes(mixed) == {"asymmetric"}
    assert modes(dataclasses.replace(mixed, tune=Tune(space=TuneSpace(preset="performance")))) == {"symmetric"}


def test_asymmetric_weights_are_left_out_where_they_run_in_f32(problem: Problem) -> None:
    def modes(settings: Config) -> set[tuple[str, str]]:
        schemes = setup.make_space(settings, problem).offer.schemes
        return {(quantizer.kind, quantizer.scheme.mode) for choices in schemes.values() for quantizer in choices}

    everything = {(kind, mode) for kind in (ACTIVATIONS, WEIGHTS) for mode in ("symmetric", "asymmetric")}

    def default(**tune: Any) -> Config:
        return dataclasses.replace(config(**tune), engine=schema.Engine())

    assert modes(config()) == everything and setup.left_out(config()) == []
    assert modes(default()) == everything - {(WEIGHTS, "asymmetric")}
    assert "asymmetric weights are left out" in setup.left_out(default())[0]
    accurate = default(space=TuneSpace(preset="accuracy"))  # whose own weights are asymmetric: they may become symmetric
    space = setup.make_space(accurate, problem)
    asked = {question.key: choices for question, choices, _ in space.parameters() if question.kind == WEIGHTS}
    assert asked["mode"] == ("asymmetric", "symmetric")


# ------------------------------------------------------------------------------------------------ the trials that are given


@pytest.mark.parametrize(("effect", "expected"), [(None, {"w": 10.0, "a": 20.0}), (0.01, {"w": 40.0, "a": math.inf})])
def test_layers_are_left_out_by_their_effect_on_the_outputs_else_by_their_noise(
    effect: float | None, expected: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of a hundredth at the outputs is 40 dB; the other layer was not measured."""
    monkeypatch.setattr("stages.common.artifacts.folder", lambda stage: tmp_path)
    rows = [{"layer": "conv:1", "sqnr_db": 10.0, "effect_on": effect}, {"layer": "add:0 < x", "sqnr_db": 20.0, "effect_on": None}]
    (tmp_path / "layers.json").write_text(json.dumps(rows))
    quantizers = [SimpleNamespace(name="w", layers=[Place("conv", "", 1)]), SimpleNamespace(name="a", layers=[Place("add", "", 0)])]
    plan: Any = SimpleNamespace(quantizers=quantizers)
    assert setup._noise(plan) == pytest.approx(expected)


def given(
    settings: Config, problem: Problem, monkeypatch: pytest.MonkeyPatch, aware: Plan | None = None, best: Plan | None = None
) -> list[Start]:
    """The first trials; the weights of conv3 are the noisiest, then the input of conv1."""
    monkeypatch.setattr(setup, "_noise", lambda plan: {"conv3/fq_weights_1": 3.0, "relu0/fq_output_0": 4.0})
    monkeypatch.setattr(setup, "accuracy_aware_plan", lambda: aware)
    session: Any = SimpleNamespace(problem=problem)
    space = setup.make_space(settings, problem, best)
    search = setup.make_search(settings, session, space)
    found = setup.starts(settings, search, best)
    return [*found, *setup.more_starts(settings, search, len(found))]


def labels(*arguments: Any) -> list[str]:
    return [start.label for start in given(*arguments)]


def test_presets_come_first_and_then_the_noisiest_layers_up_to_n_initial_point(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """The preset to start from is the fully quantized model. Without `mode` in the scope another preset is no model of the space."""
    modes = ["layer", "mode"]
    presets = [FULL, "preset mixed", "preset accuracy"]
    found = labels(config(n_initial_point=5, plans=0, space=TuneSpace(tuning_scope=modes)), problem, monkeypatch)
    assert found == [*presets, "without conv3", "without the 2 worst"]
    # Plans take the place of some, and strategy `plan` begins no other search that needs them.
    planned = config(n_initial_point=5, plans=1, space=TuneSpace(tuning_scope=modes))
    assert labels(planned, problem, monkeypatch) == [*presets, "without conv3"]
    only = config(n_initial_point=5, strategy="plan", space=TuneSpace(tuning_scope=modes))
    assert labels(only, problem, monkeypatch) == presets
    fewer = labels(config(n_initial_point=4, plans=0, space=TuneSpace(tuning_scope=modes)), problem, monkeypatch)
    assert fewer == [*presets, "without conv3"]
    assert labels(config(n_initial_point=0, space=TuneSpace(tuning_scope=modes)), problem, monkeypatch) == presets
    assert labels(config(n_initial_point=2, plans=0, space=TuneSpace(tuning_scope=["layer"])), problem, monkeypatch) == [
        FULL,
        "without conv3",
    ]
    # Where no layer may be left float, none is.
    assert labels(config(space=TuneSpace(tuning_scope=["mode"])), problem, monkeypatch) == presets


def test_preset_auto_is_given_where_the_space_has_its_modes_and_estimators(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """It differs from layer to layer; POT has no preset like it."""
    both = TuneSpace(tuning_scope=["mode", "range_estimator"], estimator_tuning_scope=["preset"])
    assert "preset auto" in labels(config(n_initial_point=0, space=both), problem, monkeypatch)
    compatible = config(n_initial_point=0, space=both)
    compatible.quantization.pot_compatible = True
    assert "preset auto" not in labels(compatible, problem, monkeypatch)
    start = labels(config(n_initial_point=0, space=dataclasses.replace(both, preset="auto")), problem, monkeypatch)
    assert start[:2] == [FULL, "preset performance"]


def test_the_accuracy_aware_model_is_given_as_it_is_where_layers_may_be_left_float(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(problem)
    aware = without(plan, [next(entry.name for entry in plan.quantizers if entry.layers[0].name == "conv2")], "reverted")
    for scope, there in ((["layer"], True), (["mode"], False)):
        settings = config(n_initial_point=0, space=TuneSpace(tuning_scope=scope))
        found = {start.label: start for start in given(settings, problem, monkeypatch, aware)}
        assert ("accuracy_aware" in found) == there
        if there:
            assert found["accuracy_aware"].candidate.plan == aware


def test_a_search_around_an_earlier_best_tries_it_and_keeps_what_the_scope_does_not_name(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = setup.make_space(config(), problem).plan({"conv1.quantize": "float"})
    settings = config(n_initial_point=0, space=TuneSpace(tuning_scope=["range_estimator"]))
    first, second, *_ = given(settings, problem, monkeypatch, None, best)
    assert (first.label, second.label) == (FULL, setup.LAST_BEST)
    assert set(second.candidate.plan.quantizers) == set(best.quantizers) != set(first.candidate.plan.quantizers)
    assert setup.LAST_BEST not in labels(settings, problem, monkeypatch)


# ------------------------------------------------------------------------------------------------ what is carried over


def test_a_repeated_search_is_told_by_all_that_it_is_asked_for() -> None:
    key = setup.settings_key(config())
    assert key == setup.settings_key(dataclasses.replace(config(), cluster=schema.Cluster(workers=3)))
    for other in (config(seed=1), config(max_trials=3), config(space=TuneSpace(tuning_scope=["layer"]))):
        assert setup.settings_key(other) != key


@pytest.mark.parametrize(
    "changes",
    [
        {"space": TuneSpace(tuning_scope=["layer"])},
        {"space": TuneSpace(exclude=["conv1"])},
        {"space": TuneSpace(preset="mixed")},
        {"metrics": [TuneMetric("error", 2.0)]},
        {"eval_subset_size": 9},
        {"benchmark": Benchmark(duration_seconds=3.0)},
        {"benchmark": Benchmark(enabled=False)},
    ],
)
def test_trials_are_taken_over_only_where_they_mean_the_same(problem: Problem, changes: dict[str, Any]) -> None:
    def key(settings: Config) -> str:
        return str(setup.make_history(settings, problem, setup.make_space(settings, problem))._trials)

    assert key(config()) == key(config(max_trials=3, seed=9, trials_load_method="warm_start", accuracy_loss=3.0))
    assert key(config()) != key(config(**changes))


def test_other_biases_are_other_trials(problem: Problem) -> None:
    def key(settings: Config) -> str:
        return str(setup.make_history(settings, problem, setup.make_space(settings, problem))._trials)

    assert key(config()) != key(dataclasses.replace(config(), bias_correction=schema.BiasCorrection(enabled=False)))


# ------------------------------------------------------------------------------------------------ plans


def test_plans_are_made_of_what_the_space_offers_and_measured_once(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = config(plans=2, space=TuneSpace(tuning_scope=["layer", "mode"]), benchmark=Benchmark(duration_seconds=0.05))
    space = setup.make_space(settings, problem)
    history = setup.make_history(settings, problem, space)
    found, again = (setup.plan_trials(settings, problem, space, history) for _ in range(2))
    assert found is not None and again == found  # times, too: they are remembered
    assert found.count == 2 and found.additivity is not None
    options = {name for unit in found.units.values() for name in unit}
    assert {FULL, "preset mixed", "float"} <= options
    assert sum(unit["float"].time for unit in found.units.values()) > 0
    assert setup.plan_trials(config(plans=0), problem, space, history) is None
