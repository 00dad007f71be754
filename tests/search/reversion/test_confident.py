"""Reversion until the budget holds on samples that nobody has seen, where the search samples suffice to say so."""

from __future__ import annotations

import pytest

from stages.search.reversion.outcome import acceptance_json
from tests.search.reverting import budget_of, culprit_problem, searched
from tests.search.scripted import additive, run_script


def test_more_is_given_back_until_the_budget_is_kept_for_sure() -> None:
    """16 of 80 wrong are just within the budget of 20 %, 8 are so for sure: what the second layer brings."""
    wrong = additive(conv3=24, conv0=8, conv1=1)
    point, _ = run_script(wrong, allowed=0.2)
    assert point.best.layers == ("conv3",) and point.search.sure is None and acceptance_json(point.search, point.best) is None
    found, _ = run_script(wrong, allowed=0.2, acceptance="confident")
    assert set(found.best.layers) == {"conv3", "conv0"} and found.search.sure
    accepted = acceptance_json(found.search, found.best)
    assert accepted is not None and accepted["holds"] and accepted["samples"] is None
    assert 0.1 < accepted["bounds"]["accuracy"] <= 0.2
    assert accepted["models"] >= 7
    # With 16 of 80 wrong and 20 % allowed no number of samples would do.
    assert accepted["fewer"] == {"layers": 1, "samples": None}


def test_what_the_budget_would_take_is_said_where_samples_do_not_suffice() -> None:
    """No model is sure to lose at most 2 % after 80 samples, not even one that lost none: the search samples alone decide."""
    wrong = additive(conv0=25, conv1=15)
    found, session = run_script(wrong, allowed=0.02, acceptance="confident")
    point, _ = run_script(wrong, allowed=0.02)
    assert found.best.layers == point.best.layers == ("conv0", "conv1") and found.best.holds
    accepted = acceptance_json(found.search, found.best)
    assert accepted is not None and not accepted["holds"] and accepted["bounds"]["accuracy"] > 0.02
    assert accepted["samples"] is not None and 80 < accepted["samples"] < 1000
    assert [step.phase for step in found.search.trace[:2]] == ["base", "noisiest half"]
    assert len(session.whole()) == len({*session.whole()})


HALF = frozenset({"conv3", "conv0", "conv2", "head"})  # the noisiest blocks that make less than a half of the multiplications


def test_a_search_that_is_ended_early_ends_with_the_sure_model_that_it_knows() -> None:
    """That of the one look that says whether any would be sure; what it reverted for nothing is quantized again."""

    def wrong(candidate: object, returned: frozenset[str]) -> int:
        return 0 if returned >= HALF - {"head"} else 14 if "conv3" in returned else 40

    found, _ = run_script(wrong, allowed=0.2, acceptance="confident", max_iter_num=1)
    assert found.search.stopped.startswith("accuracy_aware.max_iter_num")
    assert found.search.sure and set(found.best.layers) == HALF - {"head"}


def test_more_than_half_is_not_given_back_to_be_sure() -> None:
    """All in floating point would be sure, and nothing short of it: what holds on the samples is the result."""

    def wrong(candidate: object, returned: frozenset[str]) -> int:
        return 0 if len(returned) == 7 else 6 if returned == HALF else 14 if "conv3" in returned else 40

    found, _ = run_script(wrong, allowed=0.18, acceptance="confident")
    assert found.search.sure and set(found.best.layers) == HALF
    found, session = run_script(lambda *_: 14 if len(_[1]) < 7 and "conv3" in _[1] else 40, allowed=0.18, acceptance="confident")
    assert found.search.sure is False and found.best.layers == ("conv3",) and found.best.holds
    assert max(map(len, session.whole())) == len(HALF)


def test_a_base_that_is_sure_stays_as_it_is() -> None:
    problem = culprit_problem(80)
    found = searched(problem, budget_of(problem, accuracy=0.5), acceptance="confident")
    assert found.steps == [("base", (), True)] and found.search.sure
    # One that only holds on the samples does not.
    base = found.best.rows["accuracy"].mean()
    narrow = searched(problem, budget_of(problem, accuracy=1 - float(base) + 0.01), acceptance="confident")
    assert narrow.search.sure and narrow.best.layers and ("revert", True) in {(phase, accepted) for phase, _, accepted in narrow.steps}


@pytest.mark.parametrize("acceptance", ["point", "confident"])
def test_the_result_is_the_cheapest_of_those_that_are_kept(acceptance: str) -> None:
    found, _ = run_script(additive(conv0=30, conv1=5, conv2=5, conv3=0), allowed=0.3, acceptance=acceptance)
    assert found.best.layers == ("conv0",)  # ten of 80 wrong: sure
