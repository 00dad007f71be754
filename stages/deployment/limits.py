"""Whether a model keeps the limits of `check`, and those that an earlier result sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.common import artifacts
from stages.common.errors import UserError
from stages.common.units import amount, difference, metric_value, number
from stages.configuration.schema import Check, Config
from stages.deployment.deployable import Deployable

LARGER = 1.01  # than the baseline's: another version of OpenVINO writes another header
FORMAT = 1
ROUNDING = 1e-9  # of a difference of two metrics


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        what: Its name, e.g. `exact_match`.
        value: What was measured, in words.
        limit: What is allowed and by whom, in words.
        holds: Whether it is kept.
    """

    what: str
    value: str
    limit: str
    holds: bool

    @property
    def sentence(self) -> str:
        """In one line."""
        return f"{self.what}: {self.value}; {self.limit}"


def findings(config: Config, model: Deployable) -> list[Finding]:
    """What the limits of the configuration say of a model.

    Raises:
        UserError: something is to be checked that was not measured.
    """
    check = config.check
    limits = {config.evaluate.primary_metric or next(iter(config.metric)): check.maximal_drop} if check.maximal_drop is not None else {}
    found = [_drop(name, model, limit) for name, limit in (limits | check.metrics).items()]
    return [*found, *_speed_up(check, model), *_size(check, model), *_fidelity(check, model)]


def _drop(name: str, model: Deployable, limit: float) -> Finding:
    metric = model.metrics[name]
    allowed = f"at most {amount(metric, limit)} {'is' if not metric['share'] else 'are'} allowed"
    return Finding(name, _dropped(metric), allowed, metric["drop"] <= limit + ROUNDING)


def _dropped(metric: Mapping[str, Any]) -> str:
    """`drops by 3.10 points [1.70, 4.50], from 89.90 % to 86.80 %`."""
    low, high = metric["drop_low"], metric["drop_high"]
    interval = "" if low is None else f" [{difference(metric, low)}, {difference(metric, high)}]"
    change = f"from {metric_value(metric, metric['fp32'])} to {metric_value(metric, metric['value'])}"
    return f"drops by {amount(metric, metric['drop'])}{interval}, {change}"


def _speed_up(check: Check, model: Deployable) -> Iterator[Finding]:
    limit = check.minimal_speed_up
    if limit is None:
        return
    if model.speed_up is None:
        raise UserError(f"check.minimal_speed_up is {limit:g}, but speed was not measured: evaluate.benchmark.enabled is false")
    yield Finding("speed-up", _faster(model.speed_up), f"at least {limit:g}x is asked for", model.speed_up["median"] >= limit)


def _faster(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}] against FP32 in the default precision"


def _size(check: Check, model: Deployable) -> Iterator[Finding]:
    if check.maximal_size_mb is not None:
        size = model.size_bytes / 1e6
        yield Finding("size", f"{size:.2f} MB", f"at most {check.maximal_size_mb:g} MB are allowed", size <= check.maximal_size_mb)


def _fidelity(check: Check, model: Deployable) -> Iterator[Finding]:
    limit = check.maximal_fidelity
    if limit is None or model.quantizers is None:
        return
    if "ratio" not in model.fidelity:
        reason = model.fidelity.get("skipped", "evaluate.fidelity_samples is 0")
        raise UserError(f"check.maximal_fidelity is {limit:g}, but fidelity was not measured: {reason}")
    ratio = model.fidelity["ratio"]
    yield Finding("fidelity", _unfaithful(ratio), f"at most {limit:g} times are allowed", ratio <= limit)


def _unfaithful(ratio: float) -> str:
    return f"differs from what its quantizers say by {number(ratio)} times what rounding explains"


# ------------------------------------------------------------------------------------------------ an earlier result


def baseline_of(model: Deployable) -> dict[str, Any]:
    """What a baseline file holds of a model."""
    prepare, evaluation = artifacts.folder("prepare"), artifacts.read_json(artifacts.folder("evaluate") / "evaluation.json")
    kept = ("higher_is_better", "share", "fp32", "value", "drop", "drop_low", "drop_high")
    return {
        "format": FORMAT,
        "model": model.name,
        "source_sha256": artifacts.read_json(prepare / "model.json")["sha256"],
        "validation_sha256": artifacts.read_json(prepare / "dataset.json")["validation"]["sha256"],
        "samples": evaluation["samples"],
        "confidence": evaluation["confidence"],
        "device": evaluation["device"],
        "metrics": {name: {key: metric[key] for key in kept} for name, metric in model.metrics.items()},
        "speed_up": model.speed_up and {key: _rounded(value) for key, value in model.speed_up.items()},
        "size_bytes": model.size_bytes,
        "fidelity": model.fidelity.get("ratio"),
        "fidelity_limit": model.fidelity.get("limit"),
    }


def read_baseline(path: Path) -> dict[str, Any]:
    """An earlier result, from its file.

    Raises:
        UserError: there is none, or it is something else.
    """
    if not path.is_file():
        raise UserError(f"check.baseline: {path} is missing; `python -m stages.check --write-baseline {path}` writes what build/ has now")
    found: Any = artifacts.read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"check.baseline: {path} was not written by `python -m stages.check --write-baseline`, or by another version")
    return found


def against(before: Mapping[str, Any], model: Deployable) -> tuple[list[Finding], list[str]]:
    """What an earlier result says of a model, and what cannot be compared, with the reason."""
    now = baseline_of(model)
    notes = [
        f"the baseline is of {what}: drops are compared all the same"
        for key, what in (("source_sha256", "another source model"), ("validation_sha256", "other validation samples"))
        if before[key] != now[key]
    ]
    if before["model"] != now["model"]:
        notes.append(f"the baseline is of {before['model']}, this is {now['model']}")
    found = [_against_drop(name, metric, now["metrics"][name]) for name, metric in before["metrics"].items() if name in now["metrics"]]
    notes += [f"{name} is not compared: it is not measured any more" for name in before["metrics"] if name not in now["metrics"]]
    if before["speed_up"] is None or now["speed_up"] is None:
        notes.append(f"speed-up is not compared: {'the baseline has none' if now['speed_up'] else 'it was not measured'}")
    elif before["device"] != now["device"]:
        notes.append(f"speed-up is not compared: it was measured on {now['device']}, the baseline's on {before['device']}")
    else:
        low = before["speed_up"]["low"]
        limit = f"the baseline's interval begins at {low:.2f}x"
        found.append(Finding("speed-up", _faster(now["speed_up"]), limit, now["speed_up"]["median"] >= low))
    sizes = [f"{result['size_bytes'] / 1e6:.2f} MB" for result in (now, before)]
    found.append(Finding("size", sizes[0], f"the baseline has {sizes[1]}", now["size_bytes"] <= LARGER * before["size_bytes"]))
    if now["fidelity"] is not None and before["fidelity"] is not None:
        # Below the limit of its warning it is rounding, which is never the same.
        allowed = max(before["fidelity"], now["fidelity_limit"] or 0.0)
        limit = f"the baseline by {number(before['fidelity'])} times"
        found.append(Finding("fidelity", _unfaithful(now["fidelity"]), limit, now["fidelity"] <= allowed))
    elif model.quantizers is not None:
        notes.append(f"fidelity is not compared: {'the baseline has none' if before['fidelity'] is None else 'it was not measured'}")
    return found, notes


def _against_drop(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Finding:
    """A drop must not be above the interval of the earlier one, or above it itself where it had none."""
    high = before["drop"] if before["drop_high"] is None else before["drop_high"]
    limit = (
        f"the baseline's interval ends at {amount(before, high)}"
        if before["drop_high"] is not None
        else f"the baseline drops by {amount(before, high)}"
    )
    return Finding(name, _dropped(now), limit, now["drop"] <= high + ROUNDING)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
