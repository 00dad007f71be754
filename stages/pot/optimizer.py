"""POT's section `optimizer`: the search with TPE and its benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.pot.result import NEEDLESS, Translation, section_of

TPE = {
    **{
        name: f"tune.{name}"
        for name in (
            "max_trials",
            "max_minutes",
            "stop_on_target",
            "trials_load_method",
            "accuracy_loss",
            "latency_reduce",
            "accuracy_weight",
            "latency_weight",
            "quantization_ratio_weight",
            "expected_quantization_ratio",
            "eval_subset_size",
        )
    },
    "multinode": "machines are joined by Dask, not by MongoDB: see `cluster` in params.yaml",
    "model_log_dir": NEEDLESS + "trials are kept in build/ and in MLflow",
    "anneal": "TPE only",
    "debug": NEEDLESS + "every trial is kept with its parameters, always",
    "keep_uncompressed_weights": NEEDLESS + "weights are always compressed, and measured so",
}
BENCHMARK = {
    "nstreams": "tune.benchmark.streams",
    "nthreads": "tune.benchmark.threads",
    "batch_size": "tune.benchmark.batch",
    "duration_seconds": "measures a model alone; here every trial takes turns with FP32, see tune.benchmark.duration_seconds",
    "niter": NEEDLESS + "POT accepted it and never read it",
    "performance_count": NEEDLESS + "POT accepted it and never read it",
    "cpu_bind_thread": NEEDLESS + "OpenVINO decides",
    "bench_test_number": "see tune.benchmark.duration_seconds",
    "benchmark_cpp": NEEDLESS + "models are measured by this project itself",
    "benchmark_app_dir": NEEDLESS + "models are measured by this project itself",
}
HINTS = {"async": "throughput", "sync": "latency"}


def translate_optimizer(result: Translation, optimizer: Mapping[str, Any]) -> None:
    if not optimizer:
        return
    name, params = optimizer.get("name"), section_of(result, optimizer.get("params"), "optimizer.params")
    if name != "Tpe":
        result.leave("optimizer.name", name, "the optimizer is Tpe")
        return
    result.put("optimizer.name", True, "tune.enabled")
    result.put("optimizer.name", "point", "tune.acceptance")
    result.by_table(params, TPE, "optimizer.params", handled=("benchmark", "metrics"))
    if "metrics" in params:
        result.leave(
            "optimizer.params.metrics", params["metrics"], "name the metrics of `metric` in tune.metrics, or leave the primary one"
        )
    if "benchmark" in params:
        _benchmark(result, section_of(result, params["benchmark"], "optimizer.params.benchmark"), "optimizer.params.benchmark")


def _benchmark(result: Translation, benchmark: Mapping[str, Any], place: str) -> None:
    """How models are timed: POT ran `nireq` inferences at once, unless told to run one after the other."""
    kind = benchmark.get("api_type", "async")
    hint = HINTS.get(str(kind), "throughput")
    if kind not in HINTS:
        result.leave(f"{place}.api_type", kind, "one of async and sync is expected here; async is taken")
    result.put(f"{place}.api_type", hint, "tune.benchmark.hint")
    requests = benchmark.get("nireq", 0)
    if hint == "throughput" or not requests:
        result.put(f"{place}.nireq", requests, "tune.benchmark.requests")
    elif requests == 1:
        result.leave(f"{place}.nireq", requests, NEEDLESS + "api_type sync is one inference at a time")
    else:
        result.leave(f"{place}.nireq", requests, "api_type sync is one inference at a time")
    result.by_table(benchmark, BENCHMARK, place, handled=("nireq", "api_type"))
