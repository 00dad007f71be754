"""A small problem, its space, and a finished search."""

from __future__ import annotations

import pytest

from stages.configuration import schema
from stages.quantization.model.graph import read_graph
from stages.quantization.planning import make_plan_options
from stages.search.problem import Problem
from stages.search.tuning.search import Search
from stages.search.tuning.space import Space
from tests.quantization.reference_runs import target
from tests.search.problems import small_problem
from tests.search.tuning.searching import SAMPLES, searching, starts


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Judged by the error against FP32, of which every change makes another value."""
    return small_problem(SAMPLES, reference=True)


@pytest.fixture(scope="module")
def space(problem: Problem) -> Space:
    graph = read_graph(problem.model())
    return Space(
        make_plan_options(graph, target(), schema.Quantization()),
        schema.TuneSpace(tuning_scope=["layer", "mode"]),
        [node.name for node in graph.nodes],
    )


@pytest.fixture(scope="module")
def finished(problem: Problem, space: Space, tmp_path_factory: pytest.TempPathFactory) -> Search:
    """An uninterrupted search."""
    with searching(problem, space, tmp_path_factory.mktemp("whole")) as search:
        search.run(starts(search))
    return search
