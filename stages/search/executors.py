"""Where evaluations run: threads of this process, or a Dask cluster."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from stages.common.errors import UserError
from stages.configuration import schema
from stages.search.evaluator import Outcome, Task, evaluate
from stages.search.problem import Problem

Submit = Callable[[Task], Future[Outcome]]
Start = Callable[[], AbstractContextManager[Any]]  # makes a Dask cluster, anything with `scale`

LOCAL, DASK = "local", "dask"
CONNECT_SECONDS = 10
ATTEMPTS = 4  # per evaluation, where workers are lost


@contextmanager
def executing(cluster: schema.Cluster, problem: Problem, start: Start | None = None) -> Iterator[Submit]:
    """Something that evaluates tasks of `problem` on the configured cluster.

    Args:
        cluster: Of the configuration.
        problem: What tasks are about.
        start: Makes the cluster that `cluster.start` asks for.

    Raises:
        UserError: the cluster cannot be reached or has no workers, or Dask is not installed.
    """
    with _dask(cluster, problem, start) if cluster.kind == DASK else _local(cluster, problem) as submit:
        yield submit


@contextmanager
def _local(cluster: schema.Cluster, problem: Problem) -> Iterator[Submit]:
    """Threads suffice: building, compiling and inferring happen in OpenVINO, outside Python's lock."""
    if cluster.workers > 1 and not problem.engine.threads:
        threads = max(1, (os.cpu_count() or 1) // cluster.workers)
        problem = replace(problem, engine=replace(problem.engine, threads=threads))
    with _cancelling(ThreadPoolExecutor(cluster.workers, "evaluation")) as executor:
        yield lambda task: executor.submit(evaluate, problem, task)


@contextmanager
def _cancelling(executor: Executor) -> Iterator[Executor]:
    """Leave without waiting for what has not begun."""
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


# ---------------------------------------------------------------------------------------------------------------- Dask


@contextmanager
def _dask(cluster: schema.Cluster, problem: Problem, start: Start | None) -> Iterator[Submit]:
    try:
        from dask.distributed import Client, LocalCluster
    except ImportError:
        raise UserError("cluster.kind is dask, but Dask is not installed: pip install -e '.[cluster]'") from None
    if start is not None:
        with start() as started, Client(started) as client:
            started.scale(cluster.workers)
            yield from _submitting(client, problem, cluster.wait_minutes)
        return
    if cluster.address is None:
        # Processes of one thread each, as separate as machines are.
        local = LocalCluster(n_workers=cluster.workers, threads_per_worker=1, processes=True, dashboard_address=None)
        with local, Client(local) as client:
            yield from _submitting(client, problem, cluster.wait_minutes)
        return
    try:
        client = Client(cluster.address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cluster.address is {cluster.address!r}, but no Dask scheduler answers there: {reason}") from None
    with client:
        yield from _submitting(client, problem, cluster.wait_minutes)


def _submitting(client: Any, problem: Problem, wait_minutes: float) -> Iterator[Submit]:
    try:
        client.wait_for_workers(1, timeout=60 * wait_minutes)
    except TimeoutError:
        raise UserError(f"the Dask cluster has no worker after {wait_minutes:g} minutes (cluster.wait_minutes)") from None
    remote = _Remote(client, problem)
    # Threads that only wait, so that an evaluation whose worker is lost is sent again.
    with _cancelling(ThreadPoolExecutor(max_workers=64, thread_name_prefix="waiting")) as executor:
        yield lambda task: executor.submit(remote.evaluate, task)


class _Remote:
    """Sends a problem to the workers of a cluster once, and tasks after it."""

    def __init__(self, client: Any, problem: Problem) -> None:
        self._client = client
        self._problem = problem
        self._lock = threading.Lock()
        self._sent: Any = None

    def evaluate(self, task: Task) -> Outcome:
        """Evaluate on some worker, and on another one where it is lost."""
        from dask.distributed import CancelledError, KilledWorker

        for attempt in range(ATTEMPTS):
            sent = self._send()
            try:
                return self._client.submit(evaluate, sent, task, pure=False).result()
            except (CancelledError, KilledWorker, OSError) as error:
                # The worker is gone, maybe with the only copy of the problem.
                if attempt == ATTEMPTS - 1:
                    raise UserError(f"the cluster lost an evaluation {ATTEMPTS} times: {str(error).splitlines()[0]}") from error
                self._forget(sent)
        raise AssertionError("unreachable")

    def _send(self) -> Any:
        with self._lock:
            if self._sent is None:
                if not self._client.scheduler_info()["workers"]:
                    self._client.wait_for_workers(1, timeout=60)
                self._sent = self._client.scatter(self._problem, broadcast=True, hash=False)
            return self._sent

    def _forget(self, sent: Any) -> None:
        with self._lock:
            if self._sent is sent:
                self._sent = None
