"""How fast models run: latency and throughput measured side by side, and which layers the time goes to.

Speeds measured one after the other on a shared machine mostly compare its moods. Here every round measures all models
within the same fraction of a second, and two models are compared by the ratios within rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from stages.configuration.schema import Engine
from stages.runtime.engine import compile, int8_precision
from stages.runtime.requests import Inputs, Requests, infer_once, keeps_state

BLOCK_SECONDS = 0.02
LONGEST_BLOCK = 100
ROUNDS_IN_FLIGHT = 2  # how often each request is used in one measurement of throughput, at least
FEWEST_ROUNDS = 3
FEWEST_TO_SETTLE = 12  # rounds before anything is said to be known
# Of a ratio: the half width of its median's interval at which measuring ends. To know it better is not worth the time: the
# medians of ten compilations of one model spread by 1.1 % (standard deviation) where each is timed long, by 1.3 % where it is not.
KNOWN_TO = 0.02


class Spread(NamedTuple):
    """A median, and the range that holds four fifths of the rounds (10th to 90th percentile).

    Quartiles would be too narrow to judge by: two compilations of one model differ by 1 % in most rounds, because their
    buffers lie differently in memory.
    """

    median: float
    low: float
    high: float

    @property
    def differs_from_one(self) -> bool:
        """For a ratio: whether nine rounds in ten agree on which model is faster."""
        return self.low > 1.0 or self.high < 1.0


@dataclass(frozen=True)
class NodeTime:
    """One executed node of a compiled model.

    Attributes:
        layers: Names of the model's operations that this node carries out; the main one first, the fused ones after it.
        microseconds: Mean execution time of one inference.
        implementation: The runtime's name of the kernel, e.g. `brgconv_avx512_amx_i8`.
    """

    layers: tuple[str, ...]
    microseconds: float
    implementation: str


def benchmark(
    fp32: ov.Model,
    int8: ov.Model,
    engine: Engine,
    inputs: Inputs,
    seconds: float,
    for_throughput: Mapping[str, ov.CompiledModel] | None = None,
) -> tuple[dict[str, Any], list[NodeTime]]:
    """Latency, throughput and speed-up of the FP32 model in f32, of the same in the device's default precision, and of the INT8 model.

    Args:
        fp32: The model in floating point.
        int8: The quantized model.
        engine: What they run on.
        inputs: What they are given.
        seconds: Time for everything, at most. Latency takes less of it where the speed-up is soon known (`settled`), and the rest
            in proportion.
        for_throughput: The models `fp32`, `default` (unless that is f32, too) and `int8`, where they are compiled for throughput already.

    Returns:
        What latency.json holds (milliseconds, samples per second, and how many times faster INT8 is than each of the others)
        and the node times of the INT8 model.
    """
    precision = int8_precision(int8, engine)
    precisions = {"fp32": (fp32, "f32"), "default": (fp32, "default"), "int8": (int8, precision)}

    def compiled(hint: str) -> dict[str, ov.CompiledModel]:
        models = {name: compile(model, engine, precision, hint=hint) for name, (model, precision) in precisions.items()}
        if precision_of(models["default"]) == "f32":
            del models["default"]  # the same as fp32: measured once
        return models

    models = compiled("LATENCY")
    started = time.perf_counter()
    rounds = latency(models, inputs, 0.6 * seconds, settled)
    needed = time.perf_counter() - started
    rates = throughput(for_throughput or compiled("THROUGHPUT"), inputs, needed / 2)
    rounds.setdefault("default", rounds["fp32"])
    rates.setdefault("default", rates["fp32"])
    batch = next(iter(inputs.values())).shape[0] if inputs else 1
    result = {
        "rounds": len(rounds["int8"]),
        "latency_ms": {name: spread(1e3 * rounds[name])._asdict() for name in precisions},
        "throughput": {name: rates[name] * batch for name in precisions},
        "speed_up": {name: speed_up(rounds[name], rounds["int8"])._asdict() for name in ("fp32", "default")},
    }
    return result, node_times(compile(int8, engine, precision, hint="LATENCY", counters=True), inputs, needed / 6)


def side_by_side(models: Mapping[str, tuple[ov.Model, str]], engine: Engine, inputs: Inputs, seconds: float) -> dict[str, Any]:
    """Latency of models, each in a precision, in the same rounds.

    Returns:
        Milliseconds per model, and how many times faster the last model is than each of the others.
    """
    compiled = {name: compile(model, engine, precision, hint="LATENCY") for name, (model, precision) in models.items()}
    rounds = latency(compiled, inputs, seconds)
    *others, last = models
    return {
        "rounds": len(rounds[last]),
        "latency_ms": {name: spread(1e3 * times)._asdict() for name, times in rounds.items()},
        "speed_up": {name: speed_up(rounds[name], rounds[last])._asdict() for name in others},
    }


def precision_of(model: ov.CompiledModel) -> str:
    """The precision that a compiled model computes in where it is not quantized, e.g. `bf16`; `f32` where the device has no choice."""
    if "INFERENCE_PRECISION_HINT" not in model.get_property("SUPPORTED_PROPERTIES"):
        return "f32"
    return str(model.get_property("INFERENCE_PRECISION_HINT").to_string())


def streams_of(running: ov.CompiledModel) -> int | None:
    """Inferences that a compiled model runs at once; None where the device has no such number."""
    if "NUM_STREAMS" not in running.get_property("SUPPORTED_PROPERTIES"):
        return None
    return int(running.get_property("NUM_STREAMS"))


def spread(values: NDArray[np.float64]) -> Spread:
    """Median and range of one number per round."""
    low, median, high = np.quantile(values, [0.1, 0.5, 0.9])
    return Spread(float(median), float(low), float(high))


def speed_up(reference: NDArray[np.float64], model: NDArray[np.float64]) -> Spread:
    """How many times faster a model is than the reference, from times of the same rounds."""
    return spread(reference / model)


def settled(rounds: Mapping[str, Sequence[float]]) -> bool:
    """Whether the last model's speed-ups over the others are known well enough (`KNOWN_TO`).

    Known is the median of the rounds' ratios: its interval at 95 % confidence lies between two of the sorted ratios, those
    0.98 √n places from the middle (binomial distribution of the number of ratios below the median, approximated by a normal one).

    Args:
        rounds: By model, the seconds of one call in each round.
    """
    *others, last = rounds
    count = len(rounds[last])
    if count < FEWEST_TO_SETTLE:
        return False
    reach = 0.98 * count**0.5
    low, high = int(count / 2 - reach), min(count - 1, int(count / 2 + reach))
    for other in others:
        ratios = np.sort(np.array(rounds[other]) / np.array(rounds[last]))
        if ratios[high] - ratios[low] > 2 * KNOWN_TO * ratios[count // 2]:
            return False
    return True


def interleave(
    runs: Mapping[str, Callable[[], object]], seconds: float, enough: Callable[[Mapping[str, Sequence[float]]], bool] | None = None
) -> dict[str, NDArray[np.float64]]:
    """Times each callable in rounds: a short block of one, then of the next, and again, each round starting with another one.

    A block begins with one untimed call, because the caches still hold the previous model's weights.

    Args:
        runs: What to time, by name.
        seconds: Time for everything; exceeded only where it is too short for three rounds.
        enough: Says of the rounds so far that they will do, e.g. `settled`.

    Returns:
        By name, the median seconds of one call in each round.
    """
    calls = {}
    end = time.perf_counter() + seconds
    for name, run in runs.items():
        run()  # allocates; never representative
        calls[name] = int(np.clip(BLOCK_SECONDS / max(_timed(run), 1e-9), 1, LONGEST_BLOCK))
    names = list(runs)
    rounds: dict[str, list[float]] = {name: [] for name in names}
    done = 0
    while done < FEWEST_ROUNDS or time.perf_counter() < end:
        first = done % len(names)
        for name in names[first:] + names[:first]:
            runs[name]()
            rounds[name].append(float(np.median([_timed(runs[name]) for _ in range(calls[name])])))
        done += 1
        if enough is not None and done >= FEWEST_ROUNDS and enough(rounds):
            break
    return {name: np.array(times) for name, times in rounds.items()}


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def latency(
    models: Mapping[str, ov.CompiledModel],
    inputs: Inputs,
    seconds: float,
    enough: Callable[[Mapping[str, Sequence[float]]], bool] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Seconds of one synchronous inference per round and model; compile the models for latency. See `interleave`."""

    def runner(model: ov.CompiledModel) -> Callable[[], object]:
        request = model.create_infer_request()
        stateful = keeps_state(request)
        return lambda: infer_once(request, inputs, reset=stateful)

    return interleave({name: runner(model) for name, model in models.items()}, seconds, enough)


def saturated(models: Mapping[str, ov.CompiledModel], inputs: Inputs, seconds: float) -> dict[str, NDArray[np.float64]]:
    """Seconds per inference with all requests in flight, per round and model; compile the models for throughput."""
    pools = {name: Requests(model) for name, model in models.items()}

    def runner(pool: Requests) -> Callable[[], object]:
        return lambda: _infer_repeatedly(pool, inputs, ROUNDS_IN_FLIGHT * len(pool))

    rounds = interleave({name: runner(pool) for name, pool in pools.items()}, seconds)
    return {name: times / (ROUNDS_IN_FLIGHT * len(pools[name])) for name, times in rounds.items()}


def throughput(models: Mapping[str, ov.CompiledModel], inputs: Inputs, seconds: float, segments: int = 3) -> dict[str, float]:
    """Inferences per second with all requests in flight; compile the models for throughput.

    The models take turns, `segments` times each; the median of a model's segments counts.
    """
    pools = {name: Requests(model) for name, model in models.items()}
    rates: dict[str, list[float]] = {name: [] for name in pools}
    for pool in pools.values():
        _inferences_per_second(pool, inputs, 0.0)
    for _ in range(segments):
        for name, pool in pools.items():
            rates[name].append(_inferences_per_second(pool, inputs, seconds / (segments * len(pools))))
    return {name: float(np.median(values)) for name, values in rates.items()}


def _inferences_per_second(pool: Requests, inputs: Inputs, seconds: float) -> float:
    """Keeps all requests in flight for the given time, and counts the time until the last one is finished."""
    start = time.perf_counter()
    count = _infer_repeatedly(pool, inputs, ROUNDS_IN_FLIGHT * len(pool), start + seconds)
    return count / (time.perf_counter() - start)


def _infer_repeatedly(pool: Requests, inputs: Inputs, fewest: int, end: float = 0.0) -> int:
    """Infers at least `fewest` times, and until the clock says `end`; returns how often."""
    count = 0
    while count < fewest or time.perf_counter() < end:
        if pool.running == len(pool):
            pool.finish()
        pool.start(inputs)
        count += 1
    pool.wait()
    return count


def node_times(model: ov.CompiledModel, inputs: Inputs, seconds: float, fewest: int = 10) -> list[NodeTime]:
    """Execution time of every node, in execution order, averaged over inferences for the given time.

    Args:
        model: Compiled with PERF_COUNT.
        inputs: What to infer.
        seconds: How long to infer.
        fewest: Infer at least this often.

    Returns:
        The executed nodes; empty where the device reports no times. Those are left out that are executed once and for all, when
        the model is compiled, such as the conversion of stored weights: the runtime's graph has times for them, profiles do not.
    """
    request = model.create_infer_request()
    stateful = keeps_state(request)
    end = time.perf_counter() + seconds
    count = 0
    while count < fewest or time.perf_counter() < end:
        infer_once(request, inputs, reset=stateful)
        count += 1
    profiled = {entry.node_name for entry in request.profiling_info}
    nodes = model.get_runtime_model().get_ordered_ops()
    known = [node for node in nodes if node.get_friendly_name() in profiled] or nodes  # should a device name them otherwise
    return [found for node in known if (found := _node_time(node)) is not None]


def _node_time(node: ov.Node) -> NodeTime | None:
    information = node.get_rt_info()
    if "execTimeMcs" not in information or not (microseconds := str(information["execTimeMcs"].value)).isdigit():
        return None  # 'not_executed': constants, and what was fused into another node
    layers = str(information["originalLayersNames"].value).split(",") if "originalLayersNames" in information else []
    implementation = str(information["primitiveType"].value) if "primitiveType" in information else ""
    return NodeTime(tuple(name for name in layers if name), float(microseconds), implementation)
