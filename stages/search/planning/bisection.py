"""Which plans of a ladder to evaluate: the fastest that keep the budget lie where those end that do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def next_rungs(noise: Sequence[float], known: Sequence[tuple[float, bool]], tried: Mapping[int, bool], count: int) -> list[int]:
    """Rungs to evaluate next, at most `count`; none where nothing is left between what is within the budget and what is not.

    Args:
        noise: Of the rungs, the noisiest and fastest first.
        known: Noise of other models, and whether they are within the budget.
        tried: By rung that was evaluated, whether it is within the budget.
        count: How many may run at once.
    """
    broken = [noise[rung] for rung, within in tried.items() if not within] + [level for level, within in known if not within]
    quietest_broken = min(broken, default=float("inf"))
    first_kept = min((rung for rung, within in tried.items() if within), default=len(noise))
    left = [rung for rung in range(first_kept) if rung not in tried and noise[rung] < quietest_broken]
    kept = max((level for level, within in known if within and level < quietest_broken), default=0.0)
    likely = [rung for rung in left if noise[rung] <= kept]
    picked = likely[:1]  # what is no noisier than a model that keeps the budget
    left = [rung for rung in left if rung not in likely]
    while left and len(picked) < count:
        picked.append(left.pop((len(left) - 1) // 2 if broken else 0))  # where nothing speaks against them, the fastest
    return sorted(picked)
