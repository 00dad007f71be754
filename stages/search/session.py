"""A session of a search: strategies ask it for outcomes, and it evaluates only what nobody has evaluated before.

Strategies are deterministic: a search that was killed asks the same questions again, gets the answers that the journal knows, and
goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from contextlib import contextmanager
from dataclasses import replace

from stages.configuration import schema
from stages.search.evaluator import Outcome, Task, all_positions, evaluate, task_key
from stages.search.executors import Start, Submit, executing
from stages.search.journal import Journal
from stages.search.problem import Problem

Note = Callable[[str], None]


class Session:
    """Evaluates tasks in parallel, and remembers.

    Attributes:
        problem: What is searched.
        evaluated: How many evaluations this session has done.
        remembered: How many it did not need to do.
        spent_seconds: What all the answers so far cost when they were found, now or earlier: limits of time that are held against
            it end a resumed search where they end an uninterrupted one.
    """

    def __init__(self, problem: Problem, journal: Journal, submit: Submit) -> None:
        self.problem = problem
        self.evaluated = 0
        self.remembered = 0
        self.spent_seconds = 0.0
        self._journal = journal
        self._submit = submit

    def evaluate(
        self, tasks: Sequence[Task], done: Callable[[Outcome], None] = lambda outcome: None, *, here: bool = False
    ) -> list[Outcome]:
        """The outcomes of tasks, in the order of the tasks; `done` is called with each one that is evaluated, as it completes.

        here: evaluate in this thread, one task after the other: to measure latencies while nothing else runs.

        Raises:
            UserError: of the evaluation.
        """
        keys = [task_key(task) for task in tasks]
        running: dict[Future[Outcome], Task] = {}
        found: dict[str, Outcome] = {}
        for key, task in zip(keys, tasks, strict=True):
            if key in found or key in {task_key(other) for other in running.values()}:
                continue
            known = self._journal.known.get(key) or self._derived(task, key)
            if known is None:
                running[_evaluated(self.problem, task) if here else self._submit(task)] = task
            else:
                found[key] = known
                self.remembered += 1
        try:
            for future in as_completed(running):
                outcome = future.result()
                self._journal.append(outcome, everything=_everything(self.problem, running[future]))
                found[outcome.key] = outcome
                self.evaluated += 1
                done(outcome)
        finally:
            for future in running:
                future.cancel()
        # In the order of the tasks, so that the sum is the same however they ran.
        self.spent_seconds += sum(found[key].seconds for key in dict.fromkeys(keys))
        return [found[key] for key in keys]

    def _derived(self, task: Task, key: str) -> Outcome | None:
        """The outcome that follows from one on all samples: the same that an evaluation would find, stopping included."""
        from stages.search.candidates import candidate_key

        whole = self._journal.whole.get(candidate_key(task.candidate))
        if whole is None or task.timing is not None:
            return None
        positions = all_positions(self.problem, task)
        rows = {name: values[list(positions)] for name, values in whole.rows.items()}
        count = len(positions)
        if task.stop is not None:
            for end in range(task.stop.chunk, count + task.stop.chunk, task.stop.chunk):
                end = min(end, count)
                part = {name: values[:end] for name, values in rows.items()}
                if task.stop.hopeless(self.problem, part, positions):
                    return replace(whole, key=key, rows=part, complete=end == count, seconds=0.0, speed_up=None, latency_ms=None)
        return replace(whole, key=key, rows=rows, seconds=0.0, speed_up=None, latency_ms=None)


def _evaluated(problem: Problem, task: Task) -> Future[Outcome]:
    future: Future[Outcome] = Future()
    future.set_result(evaluate(problem, task))
    return future


def _everything(problem: Problem, task: Task) -> bool:
    return all_positions(problem, task) == tuple(range(len(problem.samples)))


@contextmanager
def searching(problem: Problem, name: str, cluster: schema.Cluster, start: Start | None = None) -> Iterator[Session]:
    """A session on a problem with the journal of the search `name`, evaluating on a cluster, which `start` makes where it is given.

    Raises:
        UserError: the same search runs already, or the cluster cannot be reached.
    """
    with Journal(problem.key, name) as journal, executing(cluster, problem, start) as submit:
        yield Session(problem, journal, submit)
