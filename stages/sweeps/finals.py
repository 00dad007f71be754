"""The last round of a sweep: the best models of all jobs, timed once more in the same moments."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

from stages.common import artifacts
from stages.common.errors import UserError
from stages.configuration.loading import load_config
from stages.sweeps import job
from stages.sweeps.results import Variant

MOST = 4  # models that are timed again
FP32 = "default"


def finalists(variants: Sequence[Variant]) -> list[Variant]:
    """The fastest models that keep the budget, as their jobs have measured them; none where there is nothing to compare."""
    known = [each for each in variants if each.error is None and each.ratio is not None and each.candidate.acceptable]
    best = sorted(known, key=lambda each: -(each.ratio or {})["median"])[:MOST]
    return best if len(best) > 1 else []


def timed(place: Path, variants: Sequence[Variant], seconds: float) -> tuple[list[Variant], str]:
    """The variants, finalists among them with their `final`, and in a line what was done, or why nothing was; empty: nothing to say.

    Args:
        place: The sweep's folder.
        variants: Of all jobs.
        seconds: For the measurement, at most; 0: none.
    """
    chosen = finalists(variants)
    if not chosen or not seconds:
        return list(variants), ""
    if (reason := _not_comparable(chosen)) is not None:
        return list(variants), f"not timed side by side: {reason}"
    try:
        ratios, rounds = _measure(place, chosen, seconds)
    except (UserError, OSError) as error:
        return list(variants), f"not timed side by side: {' '.join(str(error).split())}"
    final = {each.name: ratio for each, ratio in zip(chosen, ratios, strict=True)}
    numbers = ", ".join(str(each.number) for each in chosen)
    default = chosen[0].evaluation["precisions"]["default"]
    line = f"{numbers} and FP32 in {default} were timed once more, side by side, in {rounds} rounds (sweep.final_timing)"
    return [dataclasses.replace(each, final=final.get(each.name)) for each in variants], line


def _not_comparable(chosen: Sequence[Variant]) -> str | None:
    """Why models of these jobs cannot be timed here against one FP32 model."""
    from stages.runtime import engine

    if len({_fp32(each) for each in chosen}) > 1:
        return "the jobs have different FP32 models"
    engines = [dict(each.config["engine"]) for each in chosen]
    if any(settings != engines[0] for settings in engines):
        return "the jobs differ in `engine`"
    here = engine.core().get_property(engines[0]["device"], "FULL_DEVICE_NAME")
    if any(each.evaluation["device"] != here for each in chosen):
        return f"the jobs ran on another device than {here}"
    return None


def _fp32(each: Variant) -> tuple[str, ...]:
    """What tells the FP32 model of a job."""
    return tuple(artifacts.file_sha256(each.model.parents[1] / "prepare" / f"model.{suffix}") for suffix in ("xml", "bin"))


def _measure(place: Path, chosen: Sequence[Variant], seconds: float) -> tuple[list[dict[str, float]], int]:
    """How many times faster each model is than FP32 in the default precision, and in how many rounds that was measured."""
    from stages.measurement import latency
    from stages.runtime import engine
    from stages.runtime.samples import validation_samples

    with chdir(job.folder_of(place, chosen[0].number)):
        config = load_config()
        inputs = dict(enumerate(validation_samples(config)[0].inputs.values()))
        fp32 = engine.read_artifact(artifacts.folder("prepare"))
    compiled = {FP32: engine.compile(fp32, config.engine, "default", hint="LATENCY")}
    for each in chosen:
        model = engine.read_artifact(each.model.parent)
        compiled[each.name] = engine.compile(model, config.engine, engine.int8_precision(model, config.engine), hint="LATENCY")

    def known(rounds: Mapping[str, Sequence[float]]) -> bool:
        return all(latency.settled({FP32: rounds[FP32], each.name: rounds[each.name]}) for each in chosen)

    rounds: dict[str, Any] = latency.latency(compiled, inputs, seconds, known)
    return [latency.speed_up(rounds[FP32], rounds[each.name])._asdict() for each in chosen], len(rounds[FP32])
