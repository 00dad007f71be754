"""The one way in which the project starts an inference.

Inputs are always shared: OpenVINO reads an array in place and never copies it into memory of its own. One compiled model must
not see both: OpenVINO 2026.4's CPU, with dynamic shapes, copies inputs into the array that was shared last, whether that is
still alive or not. Of 6 processes that shared first and copied then, 5 died; the sixth had its samples overwritten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import openvino as ov
from numpy.typing import NDArray

Inputs = Mapping[int, NDArray[Any]]  # by index of the model's input


class Requests:
    """The inference requests of a compiled model: started with inputs, finished in the order of their start."""

    def __init__(self, compiled: ov.CompiledModel, count: int = 0) -> None:
        """Create `count` requests, each with memory of its own for outputs.

        0: twice as many as there are streams, so that every stream has its next inputs waiting while outputs are read.
        """
        streams = max(1, compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._idle = [compiled.create_infer_request() for _ in range(count or 2 * streams)]
        self.stateful = keeps_state(self._idle[0])
        self._running: deque[tuple[ov.InferRequest, Inputs]] = deque()

    def __len__(self) -> int:
        return len(self._idle) + len(self._running)

    @property
    def running(self) -> int:
        """How many have been started and not been finished."""
        return len(self._running)

    def start(self, inputs: Inputs, *, fresh: bool = True) -> None:
        """Start an idle request; there must be one. The arrays are kept alive until it is finished.

        fresh: With the model's initial state; else the one that the request finished last has left. Where none runs beside it, that
            is the request which is started now.
        """
        request = self._idle.pop()
        if fresh and self.stateful:
            request.reset_state()
        request.start_async(dict(inputs), share_inputs=True)
        self._running.append((request, inputs))

    def finish(self) -> list[NDArray[Any]]:
        """Wait for the request that was started first.

        Returns:
            Its outputs: views of OpenVINO's memory, valid until the next request is started.
        """
        request, _ = self._running[0]
        request.wait()
        self._running.popleft()
        self._idle.append(request)
        return [tensor.data for tensor in request.output_tensors]

    def wait(self) -> None:
        """Wait for all that are running, and forget their outputs."""
        while self._running:
            request, _ = self._running.popleft()
            request.wait()
            self._idle.append(request)


def keeps_state(request: ov.InferRequest) -> bool:
    """Whether its model keeps a state from one inference to the next (ReadValue, Assign)."""
    return bool(request.query_state())


def infer_once(request: ov.InferRequest, inputs: Inputs, *, reset: bool) -> None:
    """One inference in the caller's thread; the outputs stay in the request. reset: Begin with the model's initial state."""
    if reset:
        request.reset_state()
    request.infer(dict(inputs), share_inputs=True, share_outputs=True)
