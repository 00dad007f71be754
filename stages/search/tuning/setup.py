"""What the TPE search starts from: its problem, space, goal and first trials, from the configuration and the artifacts."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict

from stages.common import artifacts
from stages.common.errors import UserError
from stages.configuration.schema import APART, Config, Quantization
from stages.configuration.target_device import ACTIVATIONS, Target, read_target
from stages.quantization.model.graph import Graph, read_graph
from stages.quantization.placement.plan import Plan, plan_from_json
from stages.quantization.planning import PlanOptions, make_plan, make_plan_options, require_something_to_quantize
from stages.quantization.statistics.store import Statistics, first_samples
from stages.runtime.engine import distrusts_zero_points
from stages.search.candidates import Candidate, candidate_key, corrections_of_quantized, digest
from stages.search.evaluator import Timing
from stages.search.planning.output_noise import noise_problem
from stages.search.problem import Problem
from stages.search.session import Session, searching
from stages.search.setup import base_candidate, cluster_start, make_problem
from stages.search.tuning import objective, tpe
from stages.search.tuning.history import History
from stages.search.tuning.plans import Plans, make_plans, measured_times
from stages.search.tuning.search import ACCURACY_AWARE, FULL, PLAN, PRESETS, Goal, Search, Start, exclusions, shuffled
from stages.search.tuning.space import Space

LAST_BEST = "the last search's best"


def tuning_problem(config: Config) -> Problem:
    """The problem that all searches share, or one of its own where only a part of the statistics is to be used."""
    problem = make_problem(config)
    size = config.tune.space.stat_subset_size
    if size is None or size == problem.statistics.samples:
        return problem
    if size > problem.statistics.samples:
        raise UserError(
            f"tune.space.stat_subset_size: {size} is not allowed; expected at most {problem.statistics.samples},"
            " the calibration samples whose statistics were collected"
        )
    return dataclasses.replace(problem, key=digest([problem.key, size]), statistics=first_samples(problem.statistics, size))


def make_space(config: Config, problem: Problem, best: Plan | None = None) -> Space:
    """The search space around the preset, or around an earlier best plan."""
    graph = read_graph(problem.model())
    return Space(_offer(config, problem), config.tune.space, [node.name for node in graph.nodes], best)


def make_search(config: Config, session: Session, space: Space) -> Search:
    """The search that the configuration asks for, without trials yet.

    Raises:
        UserError: more samples are asked for than there are, or a metric has no relative loss.
    """
    tune = config.tune
    seed = config.seed if tune.seed is None else tune.seed
    _check_size(config, session.problem)
    goal = Goal(
        objective=tune.objective,
        target=objective.Target(
            accuracy_loss=tune.accuracy_loss / 100,
            speed_up=tune.latency_reduce,
            accuracy_weight=tune.accuracy_weight,
            latency_weight=tune.latency_weight,
            quantized_weight=tune.quantization_ratio_weight,
            expected_quantized=tune.expected_quantization_ratio,
        ),
        baselines=_baselines(config, session.problem),
        positions=shuffled(tune.eval_subset_size or len(session.problem.samples), seed),
        stop_error=tune.stop_error,
        timing=make_timing(config),
        time_here=tune.benchmark.where == "here",
        max_trials=tune.max_trials,
        max_seconds=60 * tune.max_minutes or math.inf,
        stop_on_target=tune.stop_on_target,
        batch_size=tune.batch_size,
        acceptance=tune.acceptance,
        confidence=config.evaluate.confidence,
        strategy=tune.strategy,
    )
    settings = tpe.Settings(seed, tune.n_initial_point, tune.gamma, tune.n_EI_candidates)
    return Search(session, space, goal, settings, config.bias_correction, base_candidate(config).candidate.corrections or ())


def make_timing(config: Config) -> Timing | None:
    """How the latency of a trial is measured; None: not at all."""
    benchmark = config.tune.benchmark
    timing = Timing(
        seconds=benchmark.duration_seconds,
        threads=benchmark.threads,
        streams=benchmark.streams,
        hint=benchmark.hint.upper(),
        requests=benchmark.requests,
        batch=benchmark.batch,
    )
    return timing if benchmark.enabled else None


def starts(config: Config, search: Search, best: Plan | None) -> list[Start]:
    """The trials that are given: what is known already."""
    space, found = search.space, list[Start]()

    def give(label: str, plan: Plan, *, always: bool = False) -> None:
        candidate = search.candidate(plan, label)
        proposal, exact = space.proposal(plan)
        if (exact or always) and candidate_key(candidate) not in {candidate_key(start.candidate) for start in found}:
            found.append(Start(label, candidate, proposal))

    give(FULL, space.offer.plan, always=True)
    if best is not None:
        give(LAST_BEST, space.plan(space.base_proposal()))
    for preset, label in PRESETS.items():
        if preset == "auto" and config.quantization.pot_compatible:
            continue  # POT has none like it
        give(label, make_plan(*_plan_arguments(config, search.session.problem, preset)))
    plan = accuracy_aware_plan()
    if plan is not None:
        # It reverts other groups of layers than the space does: given as it is where switching layers off is allowed.
        give(ACCURACY_AWARE, plan, always="layer" in config.tune.space.tuning_scope)
    return found


def more_starts(config: Config, search: Search, given: int) -> list[Start]:
    """Exclusions of the layers that hurt most, as far as TPE wants more trials to begin with than are given and planned."""
    tune, space = config.tune, search.space
    if tune.strategy == PLAN or not any(question.key == "quantize" for question, _, _ in space.parameters()):
        return []
    return exclusions(search, _noise(space.offer.plan), max(0, tune.n_initial_point - given - tune.plans))


def plan_trials(config: Config, problem: Problem, space: Space, history: History) -> Plans | None:
    """The plans that the configuration asks for: measured once, remembered."""
    if not config.tune.plans:
        return None
    _check_size(config, problem)
    corrections = base_candidate(config).candidate.corrections

    def candidate(plan: Plan, label: str) -> Candidate:
        kept = corrections_of_quantized(corrections, plan, config.bias_correction.apply_for_all_nodes)
        return Candidate(plan, config.bias_correction, kept, label)

    variants = {FULL: space.base_proposal()}
    for preset, label in PRESETS.items():
        proposal, exact = space.proposal(make_plan(*_plan_arguments(config, problem, preset)))
        if exact and proposal not in variants.values():
            variants[label] = proposal
    timing = make_timing(config)
    times = history.measured("times", digest([*variants.items()]), lambda: measured_times(problem, space, variants, candidate, timing))
    quiet = noise_problem(problem)
    with searching(quiet, PLAN, config.cluster, cluster_start(config.cluster)) as session:
        return make_plans(space, variants, times, candidate, session, config.tune.plans)


def accuracy_aware_plan() -> Plan | None:
    """The plan of the stage `accuracy_aware`, where it has found one."""
    folder = artifacts.folder(ACCURACY_AWARE)
    if not (folder / "result.json").exists() or not artifacts.read_json(folder / "result.json")["enabled"]:
        return None
    return plan_from_json(artifacts.read_json(folder / "quantizers.json"))


def make_history(config: Config, problem: Problem, space: Space | None) -> History:
    """What earlier searches have left for this problem, and for this space."""
    tune = config.tune
    identity = [
        space and space.key,
        dataclasses.asdict(config.bias_correction),
        _baselines(config, problem),
        tune.eval_subset_size,
        dataclasses.asdict(tune.benchmark),
    ]
    return History(problem.key, digest(identity))


def _check_size(config: Config, problem: Problem) -> None:
    count, size = len(problem.samples), config.tune.eval_subset_size
    if size is not None and size > count:
        raise UserError(f"tune.eval_subset_size: {size} is not allowed; expected at most {count}, the validation samples")


def settings_key(config: Config) -> str:
    """Identity of all that a search is asked for."""
    asked = {key: value for key, value in dataclasses.asdict(config).items() if key not in (*APART, "cluster")}
    return digest(asked)


def _baselines(config: Config, problem: Problem) -> tuple[tuple[str, float | None], ...]:
    return tuple((entry.name, entry.baseline_value) for entry in config.tune.metrics) or ((problem.primary, None),)


def _offer(config: Config, problem: Problem) -> PlanOptions:
    offer = make_plan_options(*_plan_arguments(config, problem, config.tune.space.preset or config.quantization.preset))
    require_something_to_quantize(offer.plan)
    if not distrusts_zero_points(config.engine):
        return offer
    schemes = {
        name: tuple(quantizer for quantizer in choices if quantizer.kind == ACTIVATIONS or quantizer.scheme.symmetric)
        for name, choices in offer.schemes.items()
    }
    return offer._replace(schemes=schemes)


def left_out(config: Config) -> list[str]:
    """What the target can run and the space does not offer, as sentences."""
    if distrusts_zero_points(config.engine) and "mode" in config.tune.space.tuning_scope:
        return ["asymmetric weights are left out: a model with any of them runs in f32, unless engine.inference_precision is set"]
    return []


def _plan_arguments(config: Config, problem: Problem, preset: str) -> tuple[Graph, Target, Quantization, Statistics]:
    quantization = dataclasses.replace(config.quantization, preset=preset)
    return read_graph(problem.model()), read_target(config.target_device), quantization, problem.statistics


def _noise(plan: Plan) -> dict[str, float]:
    """What `evaluate` found, by quantizer name, in dB: at the outputs, signal to the error that its block makes alone.

    Where no effect on the outputs was measured, the noise: the worst over the inputs that it serves.
    """
    rows = artifacts.read_json(artifacts.folder("evaluate") / "layers.json")
    by_effect = any(row["effect_on"] for row in rows)
    by_input: dict[str, float] = {}
    for row in rows:
        ratio = row["sqnr_db"] if not by_effect else -20 * math.log10(row["effect_on"]) if row["effect_on"] else None
        if ratio is not None:
            name = row["layer"].split(" < ")[0]
            by_input[name] = min(ratio, by_input.get(name, math.inf))
    noise: dict[str, float] = defaultdict(lambda: math.inf)
    for quantizer in plan.quantizers:
        for place in quantizer.layers:
            noise[quantizer.name] = min(noise[quantizer.name], by_input.get(f"{place.name}:{place.port}", math.inf))
    return dict(noise)
