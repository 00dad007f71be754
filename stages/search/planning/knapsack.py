"""The fastest choice of options within a budget of noise: a multiple-choice knapsack, solved to the optimum.

Noise powers of blocks add up where their errors are independent of each other, and times where blocks run one after the other. Neither
holds exactly, so what comes out is a proposal: its own noise is measured before anybody believes in it, and its accuracy and
latency are measured like anybody else's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

FLOAT = "float"
RUNGS = 14  # budgets, each half of the one before
TIE = 0.02  # of a block's time in floating point: smaller differences are none
LEAST = 1e-6  # what an option gains that is quantized and as fast


class Option(NamedTuple):
    """What a block may be.

    Attributes:
        noise: Its share of the noise at the model's outputs, as power over signal power.
        time: Its time, in any unit.
    """

    noise: float
    time: float


Blocks = Mapping[str, Mapping[str, Option]]  # by block, by name of the option
Choice = dict[str, str]  # block -> name of the option


def fastest(blocks: Blocks, budget: float) -> Choice | None:
    """The options, one of each block, that take least time together and make no more noise than `budget`; None where there are none."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    places = [(block, name) for block, options in blocks.items() for name in options]
    times = np.array([_time(blocks[block], name) for block, name in places])
    noise = np.array([blocks[block][name].noise for block, name in places])
    total = float(noise.sum()) or 1.0
    scale = budget if budget > 1e-9 * total else total
    member = np.array([[float(place[0] == block) for place in places] for block in blocks])
    constraints = [LinearConstraint(member, 1.0, 1.0), LinearConstraint((noise / scale)[None], -np.inf, budget / scale)]
    found = milp(times / max(float(times.sum()), 1e-30), constraints=constraints, integrality=np.ones(len(places)), bounds=Bounds(0, 1))
    if found.x is None:
        return None
    return {block: name for (block, name), taken in zip(places, found.x, strict=True) if taken > 0.5}


def ladder(blocks: Blocks) -> list[Choice]:
    """The fastest choices under smaller and smaller budgets of noise, the noisiest first, each once."""
    most = sum(max(option.noise for option in options.values()) for options in blocks.values())
    least = sum(min(option.noise for option in options.values()) for options in blocks.values())
    found: list[Choice] = []
    for rung in range(RUNGS):
        choice = fastest(blocks, max(most * 0.5**rung, least))
        if choice is not None and choice not in found:
            found.append(choice)
    return found


def noise_of(blocks: Blocks, choice: Choice) -> float:
    """The noise that a choice makes if that of its blocks adds up."""
    return sum(blocks[block][name].noise for block, name in choice.items())


def time_of(blocks: Blocks, choice: Choice) -> float:
    """The time that a choice takes if that of its blocks adds up."""
    return sum(blocks[block][name].time for block, name in choice.items())


def additivity(parts: Sequence[float], whole: float) -> float | None:
    """Noise of the blocks, each quantized alone, over that of all of them together: 1 where it adds up; None without any."""
    return sum(parts) / whole if whole > 0 else None


def undominated(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (noise, time) that no other one beats in both, the noisiest first."""
    return sorted(
        (
            index
            for index, (noise, time) in enumerate(points)
            if not any(
                other[0] <= noise and other[1] <= time and (other != (noise, time) or place < index) for place, other in enumerate(points)
            )
        ),
        key=lambda index: -points[index][0],
    )


def _time(options: Mapping[str, Option], name: str) -> float:
    """An option's time as the knapsack sees it: where it is hardly slower or faster than floating point, it is a little faster."""
    own = options[name].time
    if name == FLOAT or FLOAT not in options:
        return own
    unquantized = options[FLOAT].time
    return unquantized * (1.0 - LEAST) if abs(own - unquantized) <= TIE * unquantized else own
