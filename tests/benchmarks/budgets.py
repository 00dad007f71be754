"""How often an accuracy budget that a chosen model keeps is broken on samples that nobody has seen, and what it costs to make sure.

    python -m tests.benchmarks.budgets                        # all tasks; rows are made once and kept in --rows
    python -m tests.benchmarks.budgets --tasks simulated --resplits 1000

Of each task a family of models is evaluated once on many samples: two presets, blocks in floating point one by one, and the
noisiest 2, 4, 8, ... together. A resplit draws the samples to choose on, with replacement; chosen is the model that gives fewest
multiplications back of those that are accepted; all samples, which stand for the population, say whether its budget holds. (Without
replacement the samples that are left would be the worse, the luckier those are that were drawn.)
    point      accepted is what keeps the budget on the samples it is chosen on (POT's rule)
    confident  accepted is what keeps it for sure (`accuracy_aware.acceptance: confident`); where no model is, the point rule's

Real tasks: the bundled recogniser (exact match, and its character accuracy, which is no mean over samples) and the classifier of
text direction in which two channels are uneven (`accuracy_aware`). `simulated` is drawn from distributions, no model: a task whose
metric is so noisy that single layers cannot be told apart, with many models that lose almost the same.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.quantization.effect.blocks import Block, blocks_of
from stages.quantization.model.graph import read_graph
from stages.runtime import engine
from stages.runtime.metrics import Accuracy, CharacterAccuracy, Metric
from stages.search.acceptance import Criterion, Family
from stages.search.candidates import Candidate
from stages.search.evaluator import Task as Evaluation
from stages.search.evaluator import build_candidate
from stages.search.journal import Journal
from stages.search.reversion.ranking import block_noise
from stages.search.reversion.reverting import reverted
from stages.search.reversion.search import MOST_BACK
from tests.benchmarks.accuracy_aware import ENGINE, TASKS, candidate_of, problem_of, session_of, statistics_of

SINGLES = 8  # blocks that are given back one by one
HELD_OUT = 0.2  # of the validation samples that the tasks of `accuracy_aware` draw; not used here


class Models(NamedTuple):
    """A family of models with their rows.

    Attributes:
        fp32: Rows of the floating-point model [N, k].
        rows: Rows of each model [M, N, k].
        back: Share of the multiplications that each model gives back to floating point, from 0 to 1.
    """

    fp32: NDArray[np.float64]
    rows: NDArray[np.float64]
    back: NDArray[np.float64]


class Question(NamedTuple):
    """A budget on a family of models."""

    family: str  # file of rows
    key: str  # of the metric
    metric: Metric
    limit: float
    searched: int  # samples to choose on
    total: int  # samples altogether


QUESTIONS = {
    "exact match": Question("text_lines", "metric", Accuracy(), 0.03, 300, 700),
    "character accuracy": Question("text_lines", "characters", CharacterAccuracy(), 0.01, 300, 700),
    "text direction": Question("uneven", "metric", Accuracy(), 0.02, 1000, 3000),
    "text direction, looser": Question("uneven", "metric", Accuracy(), 0.03, 1500, 3000),
    "simulated": Question("simulated", "metric", Accuracy(), 0.02, 1000, 20_000),
}


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(QUESTIONS), choices=list(QUESTIONS))
    parser.add_argument("--resplits", type=int, default=200)
    parser.add_argument("--rows", type=Path, default=Path("/tmp/budget-rows"), help="folder that keeps the rows of all models")
    arguments = parser.parse_args()
    print(
        "| task, budget | models | chosen on | point: broken | drop beyond the budget | multiplications back"
        " | confident: sure of it | sure and broken | multiplications back where sure |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in arguments.tasks:
        question = QUESTIONS[name]
        models = _models(question, arguments.rows)
        found = [_resplit(question, models, seed) for seed in range(arguments.resplits)]
        print(_row(name, question, models, found), flush=True)


class Found(NamedTuple):
    """A resplit: what each rule chose, by the excess of its drop on all samples and the share that it gives back."""

    point: tuple[float, float]
    sure: bool
    confident: tuple[float, float]


def _resplit(question: Question, models: Models, seed: int) -> Found:
    chosen_on = np.random.default_rng([5, seed]).integers(0, len(models.fp32), question.searched)
    population = np.arange(len(models.fp32))
    metric, limit = question.metric, question.limit

    def drop(model: int, samples: NDArray[np.intp]) -> float:
        return metric.value(models.fp32[samples]) - metric.value(models.rows[model][samples])

    fp32 = models.fp32[chosen_on]
    family = Family({"m": Criterion(metric, fp32, metric.value(fp32), limit)}, seed=seed)
    for model, rows in enumerate(models.rows):
        family.add(str(model), {"m": rows[chosen_on]})
    everything = range(len(models.rows))
    kept = [model for model in everything if drop(model, chosen_on) <= limit + 1e-9]
    sure = [model for model in everything if models.back[model] <= MOST_BACK and family.excess(str(model)) <= 0]
    point = min(kept, key=lambda model: models.back[model])
    confident = min(sure or [point], key=lambda model: models.back[model])
    return Found(
        (drop(point, population) - limit, models.back[point]), bool(sure), (drop(confident, population) - limit, models.back[confident])
    )


def _row(name: str, question: Question, models: Models, found: list[Found]) -> str:
    broken = [entry.point[0] for entry in found if entry.point[0] > 1e-9]
    sure = [entry for entry in found if entry.sure]
    cells = [
        f"{name}, {100 * question.limit:g} points",
        str(len(models.rows)),
        f"{question.searched} of {len(models.fp32)}",
        f"{100 * len(broken) / len(found):.1f} %",
        f"{100 * np.mean(broken):.2f} points" if broken else "–",
        f"{100 * np.mean([entry.point[1] for entry in found]):.1f} %",
        f"{100 * len(sure) / len(found):.1f} %",
        f"{100 * sum(entry.confident[0] > 1e-9 for entry in sure) / len(found):.1f} %",
        f"{100 * np.mean([entry.confident[1] for entry in sure]):.1f} %" if sure else "–",
    ]
    return f"| {' | '.join(cells)} |"


# ---------------------------------------------------------------------------------------------------------------- rows


def _models(question: Question, folder: Path) -> Models:
    """The rows of a family, made where they are not known."""
    path = folder / f"{question.family}-{question.total}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = _simulated(question.total) if question.family == "simulated" else _evaluated(question.family, question.total)
        np.savez_compressed(path, **made)  # type: ignore[arg-type]
    with np.load(path) as known:
        fp32, rows = known[f"fp32/{question.key}"], known[f"rows/{question.key}"]
        return Models(fp32, np.concatenate([rows, fp32[None]]), np.append(known["back"], 1.0))  # the last one gives everything back


def _evaluated(name: str, total: int) -> Mapping[str, NDArray[np.float64]]:
    task = TASKS[name](300, int(total / (1 - HELD_OUT)))
    statistics = statistics_of(task)
    problem = problem_of(task, statistics)
    metrics: dict[str, Metric] = {"metric": task.metric}
    if name == "text_lines":
        metrics["characters"] = CharacterAccuracy(ignore_space=True)
    for metric in metrics.values():
        metric.bind(task.model)
    fp32 = engine.evaluate_metrics({"fp32": engine.compile(task.model, ENGINE, "f32")}, task.search, metrics)["fp32"]
    problem = replace(problem, metrics=metrics, fp32=fp32)
    base = candidate_of(task, statistics, "performance")
    blocks = blocks_of(read_graph(problem.model()), base.plan, "activations_and_weights")
    noise = block_noise(problem, base.plan, build_candidate(problem, base)[1], blocks, range(16))
    ranked = sorted(blocks, key=lambda block: -noise[block])
    whole = sum(block.cost for block in blocks)
    family: list[tuple[Candidate, float]] = [(base, 0.0), (candidate_of(task, statistics, "mixed"), 0.0)]
    family += [(reverted(base, group), sum(block.cost for block in group) / whole) for group in _groups(ranked)]
    with tempfile.TemporaryDirectory() as place, Journal(problem.key, "budgets", Path(place)) as journal:
        session = session_of(problem, journal)
        rows = []
        for number, (candidate, _) in enumerate(family, start=1):
            rows.append(session.evaluate([Evaluation(candidate)])[0].rows)
            print(f"{name}: {number} of {len(family)} models", flush=True)
    found: dict[str, NDArray[np.float64]] = {"back": np.array([back for _, back in family])}
    for key in metrics:
        found |= {f"fp32/{key}": fp32[key], f"rows/{key}": np.stack([values[key] for values in rows])}
    return found


def _groups(ranked: list[Block]) -> Iterator[list[Block]]:
    """Blocks that go back to floating point together."""
    yield from ([block] for block in ranked[:SINGLES])
    size = 2
    while size < len(ranked):
        yield ranked[:size]
        size *= 2


def _simulated(total: int) -> Mapping[str, NDArray[np.float64]]:
    """No model: FP32 is right on 70 % of the samples; 40 models of about the budget's drop change the answer on 8 % of them, and
    as more is given back, fewer answers change and less is lost.
    """
    generator = np.random.default_rng(0)
    fp32 = (generator.random(total) < 0.7).astype(np.float64)
    shared = generator.random(total)  # models err on the same samples, for the most part
    rows, back = [], []
    alike = [(0.08, 0.023, 0.05)] * 40
    for changed, lost, share in [*alike, *((0.08 / 2**step, 0.02 / 2**step, 0.1 * step) for step in range(1, 7))]:
        own = np.where(generator.random(total) < 0.5, shared, generator.random(total))
        right = changed / 2 + lost / 2  # of all samples: was right, is wrong
        wrong = changed / 2 - lost / 2
        flips = np.where(fp32 > 0, own < right / 0.7, own < wrong / 0.3)
        rows.append(np.where(flips, 1 - fp32, fp32))
        back.append(share)
    return {"fp32/metric": fp32[:, None], "rows/metric": np.stack(rows)[:, :, None], "back": np.array(back)}


if __name__ == "__main__":
    main()
