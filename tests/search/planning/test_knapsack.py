"""The knapsack against every choice there is, its ladder, and which rungs are looked at."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from stages.search.planning.bisection import next_rungs
from stages.search.planning.knapsack import FLOAT, Option, additivity, fastest, ladder, noise_of, time_of, undominated


def drawn(seed: int, count: int = 6) -> dict[str, dict[str, Option]]:
    generator = np.random.default_rng(seed)
    return {
        f"b{index}": {
            "performance": Option(float(generator.uniform(0.1, 2)), float(generator.uniform(0.2, 1))),
            "mixed": Option(float(generator.uniform(0.05, 1)), float(generator.uniform(0.3, 1.1))),
            FLOAT: Option(0.0, float(generator.uniform(1.2, 3))),
        }
        for index in range(count)
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [0.0, 0.5, 2.0, 100.0])
def test_no_choice_within_the_budget_is_faster(seed: int, budget: float) -> None:
    blocks = drawn(seed)
    choice = fastest(blocks, budget)
    assert choice is not None and choice.keys() == blocks.keys()
    assert noise_of(blocks, choice) <= budget + 1e-9
    everything = (dict(zip(blocks, names, strict=True)) for names in itertools.product(*blocks.values()))
    best = min(time_of(blocks, other) for other in everything if noise_of(blocks, other) <= budget + 1e-12)
    assert time_of(blocks, choice) == pytest.approx(best)


def test_a_budget_that_nothing_keeps_has_no_choice() -> None:
    assert fastest({"a": {"performance": Option(1.0, 1.0)}}, 0.5) is None


def test_what_is_slower_in_int8_stays_float_and_what_is_as_fast_does_not() -> None:
    blocks = {
        "slower": {"performance": Option(0.1, 2.0), FLOAT: Option(0.0, 1.0)},
        "hardly slower": {"performance": Option(0.1, 1.01), FLOAT: Option(0.0, 1.0)},
        "faster": {"performance": Option(0.1, 0.5), FLOAT: Option(0.0, 1.0)},
    }
    assert fastest(blocks, 10.0) == {"slower": FLOAT, "hardly slower": "performance", "faster": "performance"}


def test_the_ladder_goes_from_everything_to_next_to_nothing() -> None:
    blocks = drawn(7, count=10)
    choices = ladder(blocks)
    noise, times = ([of(blocks, choice) for choice in choices] for of in (noise_of, time_of))
    assert len(choices) > 4 and noise == sorted(noise, reverse=True) and times == sorted(times)
    assert times[0] == pytest.approx(sum(min(option.time for option in options.values()) for options in blocks.values()))
    assert noise[-1] <= noise[0] / 100
    assert len({tuple(choice.items()) for choice in choices}) == len(choices)


def test_noise_of_numbers_of_any_size() -> None:
    tiny = {name: {key: Option(option.noise * 1e-12, option.time) for key, option in options.items()} for name, options in drawn(1).items()}
    assert ladder(tiny) == ladder(drawn(1))


def test_additivity_is_the_sum_of_the_parts_over_the_whole() -> None:
    assert additivity([0.1, 0.2], 0.1) == pytest.approx(3.0)
    assert additivity([0.1], 0.0) is None


def test_what_another_one_beats_in_both_is_left_out() -> None:
    assert undominated([(1.0, 1.0), (0.5, 2.0), (0.6, 3.0), (0.1, 4.0), (1.0, 1.0)]) == [0, 1, 3]


# ------------------------------------------------------------------------------------------------ which rungs are looked at


def looked_at(noise: list[float], limit: float, known: list[tuple[float, bool]], count: int = 1) -> dict[int, bool]:
    """The rungs that are tried, one batch after the other, where those of at most `limit` are within the budget."""
    tried: dict[int, bool] = {}
    while rungs := next_rungs(noise, known, tried, count):
        tried |= {rung: noise[rung] <= limit for rung in rungs}
    return tried


@pytest.mark.parametrize("limit", [0.0, 0.4, 1.5, 7.5, 100.0])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_fastest_within_the_budget_is_found_in_few_looks(limit: float, count: int) -> None:
    noise = [10.0, 8.0, 7.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.3, 0.1]
    found = looked_at(noise, limit, [(12.0, limit >= 12.0)], count)
    within = [rung for rung, kept in found.items() if kept]
    assert min(within, default=None) == next((rung for rung, level in enumerate(noise) if level <= limit), None)
    assert len(found) <= 10 if count == 5 else len(found) <= 5 * count


def test_where_everything_in_int8_keeps_the_budget_the_fastest_is_first() -> None:
    assert next_rungs([9.0, 5.0, 1.0], [(7.0, True)], {}, 1) == [1]
    assert next_rungs([9.0, 5.0, 1.0], [(3.0, True)], {}, 1) == [2]  # no noisier than what keeps it
    assert next_rungs([9.0, 5.0, 1.0], [(3.0, True)], {2: True}, 1) == [0]
    assert next_rungs([9.0, 5.0, 1.0], [(3.0, True)], {2: True, 0: True}, 1) == []
