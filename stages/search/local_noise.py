"""The noise that each quantizer adds to its own tensor: one run of the floating-point model serves all of them."""

from __future__ import annotations

from collections.abc import Sequence

from stages.quantization.noise import ActivationNoise, aligned_model, noise_shares, weight_noise
from stages.quantization.placement.plan import Plan
from stages.quantization.solution.solve import Solved
from stages.runtime import engine
from stages.search.problem import Problem

SAMPLES = 16


def quantizer_noise(problem: Problem, plan: Plan, solved: Solved, positions: Sequence[int]) -> dict[str, float]:
    """By quantizer name, noise power over signal power.

    Of activations all channels count alike (`ActivationNoise.shares`): where few of them are so large that the others drown, the
    tensor's power says nothing of it.

    positions: validation samples on which activations are looked at.
    """
    model = problem.model()
    if plan.rewrites:
        model = aligned_model(model, problem.statistics, plan)
    shares = noise_shares(weight_noise(model, plan, solved.ranges, solved.own_weights))
    activations = ActivationNoise(model, plan, solved.ranges)
    if activations.names:
        compiled = engine.compile(activations.model, problem.engine, "f32")
        shares |= activations.shares(engine.infer(compiled, problem.chosen(positions[:SAMPLES])))
    return shares
