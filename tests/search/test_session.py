"""Evaluating, remembering and resuming: what every search stands on."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.common.errors import UserError
from stages.configuration import schema
from stages.quantization.build import build, save_model
from stages.runtime import engine
from stages.search import evaluator
from stages.search.candidates import Candidate, candidate_key, corrections_of_quantized, without
from stages.search.evaluator import OutOfReach, Task, Timing, evaluate, task_key
from stages.search.executors import executing
from stages.search.journal import Journal
from stages.search.problem import Problem
from stages.search.session import Session
from tests.project import ROOT
from tests.search.problems import small_candidate, small_problem


@pytest.fixture(scope="module")
def problem() -> Problem:
    return small_problem(reference=True)


@pytest.fixture(scope="module")
def candidate(problem: Problem) -> Candidate:
    return small_candidate(problem)


class Counting:
    """Evaluates at once, and counts."""

    def __init__(self, problem: Problem, allowed: int = 1000) -> None:
        self.problem, self.allowed, self.tasks = problem, allowed, list[Task]()

    def __call__(self, task: Task) -> Future[evaluator.Outcome]:
        future: Future[evaluator.Outcome] = Future()
        if len(self.tasks) == self.allowed:
            raise KeyboardInterrupt
        self.tasks.append(task)
        future.set_result(evaluate(self.problem, task))
        return future


# ------------------------------------------------------------------------------------------------ candidates


def test_key_of_a_candidate_is_what_its_model_follows_from(candidate: Candidate) -> None:
    name = candidate.plan.quantizers[0].name
    fewer = replace(candidate, plan=without(candidate.plan, [name], "reverted"))
    again = replace(candidate, plan=without(candidate.plan, [name], "for another reason"), label="another label")
    plain = replace(candidate, bias_correction=schema.BiasCorrection(enabled=False))
    batched = replace(candidate, plan=replace(candidate.plan, stat_batch_size=2))
    assert candidate_key(fewer) == candidate_key(again)
    assert len({candidate_key(one) for one in (candidate, fewer, plain, batched)}) == 4


def test_removed_quantizers_are_recorded(candidate: Candidate) -> None:
    quantizer = next(entry for entry in candidate.plan.quantizers if entry.kind == "weights")
    plan = without(candidate.plan, [quantizer.name], "reverted")
    assert quantizer.name not in {entry.name for entry in plan.quantizers}
    added = plan.floats[len(candidate.plan.floats) :]
    assert {(entry.name, entry.port, entry.reason) for entry in added} == {(p.name, p.port, "reverted") for p in quantizer.layers}


def test_corrections_of_layers_that_stay_quantized_are_kept(problem: Problem, candidate: Candidate) -> None:
    _, solved = build(problem.model(), problem.statistics, candidate.plan, candidate.bias_correction)
    weights = [entry for entry in candidate.plan.quantizers if entry.kind == "weights"]
    plan = without(candidate.plan, [weights[0].name], "reverted")
    kept = corrections_of_quantized(solved.corrections, plan)
    assert {entry.name for entry in solved.corrections} - {entry.name for entry in kept} == {weights[0].layers[0].name}
    assert corrections_of_quantized(solved.corrections, plan, everywhere=True) == tuple(solved.corrections)


# ------------------------------------------------------------------------------------------------ evaluation


def test_evaluation_judges_the_model_that_would_be_saved(problem: Problem, candidate: Candidate, tmp_path: Path) -> None:
    quantized, _ = build(problem.model(), problem.statistics, candidate.plan, candidate.bias_correction)
    save_model(quantized, tmp_path)
    models = {"fp32": engine.compile(problem.model(), problem.engine, "f32")}
    models["int8"] = engine.compile(engine.core().read_model(tmp_path / "model.xml"), problem.engine, "f32")
    expected = engine.evaluate_metrics(models, problem.samples, problem.metrics)["int8"]
    outcome = evaluate(problem, Task(candidate))
    assert outcome.complete
    for name, rows in expected.items():
        np.testing.assert_array_equal(outcome.rows[name], rows)
    assert outcome.rows["error"].mean() > 0


def test_positions_choose_samples_and_their_order(problem: Problem, candidate: Candidate) -> None:
    everything = evaluate(problem, Task(candidate))
    some = evaluate(problem, Task(candidate, positions=(5, 0, 20)))
    np.testing.assert_array_equal(some.rows["error"], everything.rows["error"][[5, 0, 20]])


def test_references_beyond_the_memory_are_made_again(problem: Problem, candidate: Candidate, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = evaluate(problem, Task(candidate))
    monkeypatch.setattr("stages.search.problem.MEMORY", 1000)
    fresh = replace(problem, key="nothing remembered")
    np.testing.assert_array_equal(evaluate(fresh, Task(candidate)).rows["error"], expected.rows["error"])


def test_stops_once_the_bar_is_out_of_reach(problem: Problem, candidate: Candidate) -> None:
    reachable = evaluate(problem, Task(candidate, stop=OutOfReach("accuracy", bar=0.0, chunk=8)))
    assert reachable.complete
    hopeless = evaluate(problem, Task(candidate, stop=OutOfReach("accuracy", bar=1.0, chunk=8)))
    assert not hopeless.complete
    # FP32 itself misses six of sixty, so the first look suffices.
    assert len(hopeless.rows["accuracy"]) == 8


def test_timing_compares_with_the_default_precision(problem: Problem, candidate: Candidate) -> None:
    outcome = evaluate(problem, Task(candidate, positions=(0,), timing=Timing(seconds=0.1)))
    assert outcome.speed_up is not None
    assert outcome.latency_ms is not None
    assert 0 < outcome.speed_up.low <= outcome.speed_up.median <= outcome.speed_up.high
    assert 0 < outcome.latency_ms.median < 100


def test_accurate_bias_correction_is_done_where_the_candidate_asks(problem: Problem, candidate: Candidate) -> None:
    accurate = replace(candidate, bias_correction=schema.BiasCorrection(use_fast_bias=False))
    fast = evaluate(problem, Task(candidate))
    assert not np.array_equal(evaluate(problem, Task(accurate)).rows["error"], fast.rows["error"])


def test_where_no_correction_is_left_none_is_searched_for(problem: Problem, candidate: Candidate) -> None:
    """All layers with weights are float, so that no sample is needed: tune stopped here."""
    accurate = schema.BiasCorrection(use_fast_bias=False)
    names = [quantizer.name for quantizer in candidate.plan.quantizers]
    reverted = replace(candidate, plan=without(candidate.plan, names, "tried"), bias_correction=accurate, corrections=())
    outcome = evaluate(replace(problem, calibration=None), Task(reverted))
    np.testing.assert_allclose(outcome.rows["error"], 0, atol=1e-6)
    searched = replace(reverted, corrections=None)
    assert candidate_key(searched) != candidate_key(reverted)
    plain = replace(candidate, corrections=None)
    assert candidate_key(plain) == candidate_key(replace(plain, corrections=()))  # the fast one follows from the plan


def test_a_worker_with_other_code_is_refused(problem: Problem, candidate: Candidate) -> None:
    with pytest.raises(UserError, match="another version"):
        evaluate(replace(problem, code="0" * 32), Task(candidate))


# ------------------------------------------------------------------------------------------------ journal and session


@pytest.fixture
def tasks(candidate: Candidate) -> list[Task]:
    """Different questions about the same candidate and about one with a quantizer less."""
    fewer = replace(candidate, plan=without(candidate.plan, [candidate.plan.quantizers[0].name], "reverted"))
    stop = OutOfReach("accuracy", bar=1.0, chunk=8)
    return [Task(candidate, stop=stop), Task(candidate), Task(fewer, positions=(3, 1)), Task(candidate, positions=(2,)), Task(fewer)]


def test_nothing_is_evaluated_twice(problem: Problem, tasks: list[Task], tmp_path: Path) -> None:
    submit = Counting(problem)
    with Journal(problem.key, "a", tmp_path) as journal:
        session = Session(problem, journal, submit)
        first = [session.evaluate([task])[0] for task in tasks]
        # One sample of a candidate that is known on all of them needs no inference.
        assert [task.positions for task in submit.tasks] == [None, None, (3, 1), None]
        assert (session.evaluated, session.remembered) == (4, 1)
    with Journal(problem.key, "a", tmp_path) as journal:
        again = Session(problem, journal, Counting(problem, allowed=0))
        second = [again.evaluate([task])[0] for task in tasks]
        assert (again.evaluated, again.remembered) == (0, 5)
        assert again.spent_seconds == session.spent_seconds > 0
    for one, other in zip(first, second, strict=True):
        assert (one.key, one.complete, one.seconds) == (other.key, other.complete, other.seconds)
        for name in one.rows:
            np.testing.assert_array_equal(one.rows[name], other.rows[name])


def test_what_follows_from_a_whole_evaluation_equals_an_evaluation(problem: Problem, tasks: list[Task], tmp_path: Path) -> None:
    whole = Task(tasks[0].candidate)
    stops = [OutOfReach("accuracy", bar, chunk) for bar in (0.2, 0.7, 0.8, 0.85, 0.9, 1.0) for chunk in (7, 60, 100)]
    asked = [replace(whole, stop=stop, positions=positions) for stop in stops for positions in (None, tuple(range(59, 10, -1)))]
    with Journal(problem.key, "a", tmp_path) as journal:
        session = Session(problem, journal, Counting(problem, allowed=1))
        session.evaluate([whole])
        derived = session.evaluate(asked)
    for task, outcome in zip(asked, derived, strict=True):
        fresh = evaluate(problem, task)
        assert (fresh.key, fresh.complete, len(fresh.rows["accuracy"])) == (outcome.key, outcome.complete, len(outcome.rows["accuracy"]))
        np.testing.assert_array_equal(fresh.rows["accuracy"], outcome.rows["accuracy"])
    assert {outcome.complete for outcome in derived} == {True, False}


def test_same_task_twice_in_a_batch_is_evaluated_once(problem: Problem, tasks: list[Task], tmp_path: Path) -> None:
    submit = Counting(problem)
    with Journal(problem.key, "a", tmp_path) as journal:
        first, second = Session(problem, journal, submit).evaluate([tasks[2], tasks[2]])
    assert first is second
    assert len(submit.tasks) == 1


def test_interrupted_search_keeps_what_it_found(problem: Problem, tasks: list[Task], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Journal(problem.key, "a", tmp_path) as journal:
        session = Session(problem, journal, Counting(problem, allowed=2))
        for task in tasks:
            session.evaluate([task])
    path = tmp_path / problem.key / "a.jsonl"
    with open(path, "ab") as file:
        file.write(path.read_bytes()[:100])  # as if killed in the middle of a line
    with Journal(problem.key, "a", tmp_path) as journal:
        assert set(journal.known) == {task_key(tasks[0]), task_key(tasks[1])}
        Session(problem, journal, Counting(problem)).evaluate([tasks[2]])
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == [task_key(task) for task in tasks[:3]]


def test_searches_share_what_they_know(problem: Problem, tasks: list[Task], tmp_path: Path) -> None:
    with Journal(problem.key, "a", tmp_path) as journal:
        Session(problem, journal, Counting(problem)).evaluate(tasks[1:2])
    with Journal(problem.key, "b", tmp_path) as journal:
        Session(problem, journal, Counting(problem, allowed=0)).evaluate(tasks[1:2])
    with Journal("another problem", "b", tmp_path) as journal:
        assert not journal.known


def test_damaged_line_costs_an_evaluation_and_no_more(problem: Problem, tasks: list[Task], tmp_path: Path) -> None:
    path = tmp_path / problem.key / "a.jsonl"
    with Journal(problem.key, "a", tmp_path) as journal:
        for task in tasks[1:3]:
            Session(problem, journal, Counting(problem)).evaluate([task])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0].replace('"float64": "', '"float64": "AAAA') + lines[1])
    with Journal(problem.key, "a", tmp_path) as journal:
        assert set(journal.known) == {task_key(tasks[2])}


def test_second_search_on_a_journal_is_told_so(problem: Problem, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from stages.search.journal import Journal\nwith Journal('p', 'a', Path(sys.argv[1])): pass"
    )
    with Journal("p", "a", tmp_path):
        result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0
    assert f"the same search is already running: another process writes {tmp_path}/p/a.jsonl" in result.stderr


def test_error_of_an_evaluation_reaches_the_strategy(problem: Problem, tasks: list[Task], tmp_path: Path) -> None:
    wrong = replace(problem, code="0" * 32)
    with Journal(problem.key, "a", tmp_path) as journal, executing(schema.Cluster(), wrong) as submit:
        with pytest.raises(UserError, match="another version"):
            Session(wrong, journal, submit).evaluate(tasks)
        assert not journal.known


# ------------------------------------------------------------------------------------------------ executors


@pytest.fixture
def serial(problem: Problem, tasks: list[Task]) -> list[evaluator.Outcome]:
    return [evaluate(problem, task) for task in tasks]


def same_outcomes(found: Iterator[evaluator.Outcome], expected: list[evaluator.Outcome]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.key, one.complete) == (other.key, other.complete)
        for name in other.rows:
            np.testing.assert_array_equal(one.rows[name], other.rows[name])


def test_threads_find_the_same(problem: Problem, tasks: list[Task], serial: list[evaluator.Outcome], tmp_path: Path) -> None:
    with Journal(problem.key, "a", tmp_path) as journal, executing(schema.Cluster(workers=2), problem) as submit:
        same_outcomes(iter(Session(problem, journal, submit).evaluate(tasks)), serial)


def test_as_many_threads_as_workers_evaluate_at_once(problem: Problem, tasks: list[Task], monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = threading.Barrier(3)
    monkeypatch.setattr("stages.search.executors.evaluate", lambda problem, task: meeting.wait(timeout=10))
    with executing(schema.Cluster(workers=3), problem) as submit:
        places: list[Any] = [future.result() for future in [submit(task) for task in tasks[:3]]]
    assert sorted(places) == [0, 1, 2]


def test_threads_share_the_cores(problem: Problem, tasks: list[Task], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("stages.search.executors.evaluate", lambda problem, task: problem.engine.threads)
    for workers, own, expected in ((1, 0, 0), (2, 0, 4), (16, 0, 1), (2, 3, 3)):
        given = replace(problem, engine=replace(problem.engine, threads=own))
        with executing(schema.Cluster(workers=workers), given) as submit:
            threads: Any = submit(tasks[0]).result()
        assert threads == expected


def test_problem_travels(problem: Problem, tasks: list[Task], serial: list[evaluator.Outcome]) -> None:
    same_outcomes(iter([evaluate(pickle.loads(pickle.dumps(problem)), task) for task in tasks]), serial)


def test_unreachable_scheduler_is_one_line(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    monkeypatch.setattr("stages.search.executors.CONNECT_SECONDS", 1)
    cluster = schema.Cluster(kind="dask", address="tcp://127.0.0.1:9")
    with pytest.raises(UserError, match="no Dask scheduler answers there"), executing(cluster, problem):
        pass


def test_a_local_dask_cluster_has_as_many_workers_as_are_asked_for(
    problem: Problem, tasks: list[Task], serial: list[evaluator.Outcome], tmp_path: Path
) -> None:
    distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    with executing(schema.Cluster(kind="dask", workers=2), problem) as submit, Journal(problem.key, "a", tmp_path) as journal:
        distributed.default_client().wait_for_workers(2, timeout=60)
        same_outcomes(iter(Session(problem, journal, submit).evaluate(tasks[:1])), serial[:1])
        assert len(distributed.default_client().scheduler_info()["workers"]) == 2


def test_dask_finds_the_same_and_survives_the_loss_of_a_worker(
    problem: Problem, tasks: list[Task], serial: list[evaluator.Outcome], tmp_path: Path
) -> None:
    pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    import os
    import signal

    from dask.distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as local,
        Client(local) as client,
        Journal(problem.key, "a", tmp_path) as journal,
        executing(schema.Cluster(kind="dask", address=local.scheduler_address), problem) as submit,
    ):
        session = Session(problem, journal, submit)
        found = session.evaluate(tasks[:1])
        victim = next(iter(client.run(os.getpid).values()))
        killed = iter([victim])

        def kill(outcome: evaluator.Outcome) -> None:
            for process in killed:
                os.kill(process, signal.SIGKILL)

        found += session.evaluate(tasks[1:], done=kill)
        same_outcomes(iter(found), serial)
