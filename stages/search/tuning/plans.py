"""Plans for a search: which units to quantize and how, from what each of them costs in noise and brings in time (`search.planning`).

`on` noise, of one unit quantized in floating point, is measured at the model's outputs for the base; for other presets it follows from
how much noisier their quantizers are on their own tensors. Every plan of the ladder is measured as a whole before it is proposed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.measurement.latency import node_times
from stages.quantization.placement.plan import Plan
from stages.runtime import engine
from stages.search.candidates import Candidate, candidate_key, without
from stages.search.evaluator import Timing, build_candidate, time_models
from stages.search.local_noise import quantizer_noise
from stages.search.planning.bisection import next_rungs
from stages.search.planning.knapsack import FLOAT, Choice, Option, additivity, ladder, noise_of, time_of, undominated
from stages.search.planning.output_noise import SAMPLES, output_noise
from stages.search.planning.unit_times import unit_times
from stages.search.problem import Problem
from stages.search.session import Session
from stages.search.tuning.layer_units import Unit
from stages.search.tuning.search import PLAN, Start, Trial
from stages.search.tuning.space import Proposal, Space

ALONE = "alone in INT8, to find its noise"
LARGEST_RATIO = 100.0  # of two presets' noise
COUNTED_SECONDS = 0.5  # for the times of a model's nodes

MakeCandidate = Callable[[Plan, str], Candidate]


@dataclass(frozen=True)
class Rung:
    """A plan of the ladder.

    Attributes:
        start: The trial that it makes.
        noise: Its own, measured.
        expected_noise: If that of its units added up.
        time: Expected, in milliseconds, of the units.
        layers: That stay in floating point.
    """

    start: Start
    noise: float
    expected_noise: float
    time: float
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Plans:
    """The ladder, and what is known besides.

    Attributes:
        rungs: The noisiest and fastest first.
        count: How many of them may be evaluated.
        noise: Of other models, by candidate.
        additivity: Noise of the units, each alone, over that of the fully quantized model.
        units: By unit and option, noise and milliseconds.
    """

    rungs: tuple[Rung, ...]
    count: int
    noise: Mapping[str, float] = field(default_factory=dict)
    additivity: float | None = None
    units: Mapping[str, Mapping[str, Option]] = field(default_factory=dict)

    def next(self, trials: Sequence[Trial], within: Callable[[Trial], bool], count: int) -> list[Start]:
        """The plans to try next, from what became of the trials so far; none where enough is known."""
        known = {candidate_key(trial.candidate): within(trial) for trial in trials}
        tried = {place: known[key] for place, rung in enumerate(self.rungs) if (key := candidate_key(rung.start.candidate)) in known}
        others = [(self.noise[key], kept) for key, kept in known.items() if key in self.noise]
        # A rung may be one of the models that are given anyway.
        spent = sum(candidate_key(self.rungs[place].start.candidate) not in self.noise for place in tried)
        left = min(count, self.count - spent)
        places = next_rungs([rung.noise for rung in self.rungs], others, tried, left) if left > 0 else []
        return [self.rungs[place].start for place in places]

    def table(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
        """One row per plan."""
        numbers = {candidate_key(trial.candidate): number for number, trial in enumerate(trials, start=1)}
        return [
            {
                "plan": rung.start.label,
                "trial": numbers.get(candidate_key(rung.start.candidate)),
                "noise": _rounded(rung.noise),
                "expected_noise": _rounded(rung.expected_noise),
                "expected_ms": _rounded(rung.time),
                "float_layers": list(rung.layers),
            }
            for rung in self.rungs
        ]


def make_plans(
    space: Space,
    variants: Mapping[str, Proposal],
    times: Mapping[str, Mapping[str, float]],
    candidate: MakeCandidate,
    session: Session,
    count: int,
) -> Plans:
    """The ladder of plans.

    Args:
        space: What may be chosen.
        variants: Choices that are combined, unit by unit, by name; the first one is the base.
        times: By variant (and `float`), milliseconds by unit.
        candidate: Makes a candidate of a plan.
        session: On `noise_problem`.
        count: How many plans may be evaluated.
    """
    plans = {name: space.plan(proposal) for name, proposal in variants.items()}
    base = next(iter(variants))
    positions = tuple(range(min(SAMPLES, len(session.problem.samples))))
    units = [unit for unit in space.units if _quantizers(plans[base], unit)]
    alone = output_noise(session, [candidate(_alone(plans[base], unit), ALONE) for unit in units], positions)
    local = {name: _local_noise(session.problem, plan, candidate, positions) for name, plan in plans.items()}
    blocks = {unit.name: _options(space, unit, plans, noise, local, times) for unit, noise in zip(units, alone, strict=True)}
    choices = ladder(blocks)
    starts = [_start(space, variants, choice, candidate) for choice in choices]
    others = {name: candidate(plan, name) for name, plan in plans.items()}
    measured = output_noise(session, [*(start.candidate for start in starts), *others.values()], positions)
    noise, whole = measured[: len(starts)], dict(zip(others, measured[len(starts) :], strict=True))
    rungs = [
        Rung(start, own, noise_of(blocks, choice), time_of(blocks, choice), _float_layers(units, choice))
        for start, own, choice in zip(starts, noise, choices, strict=True)
    ]
    kept = [rungs[place] for place in undominated([(rung.noise, rung.time) for rung in rungs])]
    return Plans(
        tuple(dataclasses.replace(rung, start=rung.start._replace(label=f"{PLAN} {number}")) for number, rung in enumerate(kept, 1)),
        count,
        {candidate_key(others[name]): whole[name] for name in others},
        additivity(alone, whole[base]),
        blocks,
    )


def measured_times(
    problem: Problem, space: Space, variants: Mapping[str, Proposal], candidate: MakeCandidate, timing: Timing | None
) -> dict[str, dict[str, float]]:
    """Milliseconds by unit, of the FP32 model in the default precision (`float`) and of each variant.

    timing: None: speed is the share of layers that are quantized, and each layer takes a unit of time in floating point.
    """
    unit_of = {name: unit.name for unit in space.units for name in (*unit.layers, *unit.activations, *unit.weights)}
    if timing is None:
        return {FLOAT: {unit.name: float(len(unit.layers)) for unit in space.units}, **{name: {} for name in variants}}
    models = {name: build_candidate(problem, candidate(space.plan(proposal), name))[0] for name, proposal in variants.items()}
    rounds = time_models(problem, models, dataclasses.replace(timing, seconds=timing.seconds * (1 + len(models))))
    settings = dataclasses.replace(problem.engine, threads=timing.threads or problem.engine.threads)
    inputs = dict(enumerate(next(iter(problem.chosen([0]))).inputs.values()))
    found: dict[str, dict[str, float]] = {}
    for name, model in {FLOAT: problem.model(), **models}.items():
        precision = "default" if name == FLOAT else engine.int8_precision(model, problem.engine)
        nodes = node_times(engine.compile(model, settings, precision, hint="LATENCY", counters=True), inputs, COUNTED_SECONDS)
        times = rounds["default" if name == FLOAT else name]
        found[name] = unit_times(nodes, unit_of, 1e3 * float(sorted(times)[len(times) // 2]))
    return found


def _options(
    space: Space,
    unit: Unit,
    plans: Mapping[str, Plan],
    noise: float,
    local: Mapping[str, Mapping[str, float]],
    times: Mapping[str, Mapping[str, float]],
) -> dict[str, Option]:
    """What a unit may be: each variant that differs from those before, and floating point where that is allowed."""
    names = (*unit.activations, *unit.weights)
    base = next(iter(plans))
    own = {variant: sum(shares.get(name, 0.0) for name in names) for variant, shares in local.items()}
    found: dict[str, Option] = {}
    seen: list[set[Any]] = []
    for variant, plan in plans.items():
        quantizers = _quantizers(plan, unit)
        if quantizers and quantizers not in seen:
            seen.append(quantizers)
            ratio = own[variant] / own[base] if own[base] > 0 else 1.0
            time = times[variant].get(unit.name, 0.0)
            found[variant] = Option(noise * min(max(ratio, 1 / LARGEST_RATIO), LARGEST_RATIO), time)
    if not _quantizers(space.plan(space.without([unit.name])), unit):
        found[FLOAT] = Option(0.0, times[FLOAT].get(unit.name, 0.0))
    return found


def _start(space: Space, variants: Mapping[str, Proposal], choice: Choice, candidate: MakeCandidate) -> Start:
    """The trial that a choice makes: each unit as in the variant that was chosen for it."""
    off = space.without([unit for unit, name in choice.items() if name == FLOAT])
    base = next(iter(variants))

    def answer(question: Any, choices: tuple[str, ...], default: str) -> str:
        name = choice.get(question.unit.name, base)
        proposal = off if name == FLOAT else variants[name]
        chosen = proposal.get(question.name, default)
        return chosen if chosen in choices else default

    proposal = space.ask(answer)
    return Start(PLAN, candidate(space.plan(proposal), PLAN), proposal)


def _float_layers(units: Sequence[Unit], choice: Choice) -> tuple[str, ...]:
    return tuple(layer for unit in units if choice[unit.name] == FLOAT for layer in unit.layers)


def _alone(plan: Plan, unit: Unit) -> Plan:
    names = {*unit.activations, *unit.weights}
    return without(plan, {quantizer.name for quantizer in plan.quantizers} - names, ALONE)


def _quantizers(plan: Plan, unit: Unit) -> set[Any]:
    names = {*unit.activations, *unit.weights}
    return {quantizer for quantizer in plan.quantizers if quantizer.name in names}


def _local_noise(problem: Problem, plan: Plan, candidate: MakeCandidate, positions: Sequence[int]) -> dict[str, float]:
    return quantizer_noise(problem, plan, build_candidate(problem, candidate(plan, ""))[1], positions)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
