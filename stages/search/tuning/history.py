"""What a finished or interrupted search leaves for the next one: its trials, and its last result.

Kept beside the journal of the same problem, so that nothing is carried over to another model, data set or code.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, TypeVar

from stages.common import artifacts
from stages.measurement.latency import Spread
from stages.quantization.placement.plan import Plan, plan_from_json, plan_to_json
from stages.search.candidates import Candidate, candidate_key, digest
from stages.search.journal import FOLDER
from stages.search.tuning.objective import Score
from stages.search.tuning.search import Rounds, Trial
from stages.search.tuning.space import Space

Measured = TypeVar("Measured")

MakeCandidate = Callable[[Plan, str], Candidate]


class History:
    """The files of one problem.

    Args:
        problem_key: `Problem.key`.
        trials_key: Identity of what trials of the problem have in common: space, metrics, samples, measurement.
        folder: Where journals are.
    """

    def __init__(self, problem_key: str, trials_key: str, folder: Path = FOLDER) -> None:
        self._folder = folder / problem_key
        self._trials = self._folder / f"tune-{trials_key}.json"
        self.result = self._folder / "tune-last"

    def save(self, trials: Sequence[Trial], space: Space, candidate: MakeCandidate) -> None:
        """Write the trials so far."""
        artifacts.write_json(self._trials, [_to_json(trial, space, candidate) for trial in trials])

    def load(self, space: Space, candidate: MakeCandidate) -> list[Trial]:
        """The trials that were written for this space; none where there are none, or the file is damaged."""
        try:
            return [_from_json(entry, space, candidate) for entry in json.loads(self._trials.read_text(encoding="utf-8"))]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def finals(self, trials: Sequence[Trial], finalists: Sequence[int], measure: Callable[[], Rounds]) -> Rounds:
        """What was measured of the finalists of these very trials, or what `measure` finds now: once, so that results stay."""
        key = digest([list(finalists), [(candidate_key(trial.candidate), astuple(trial.score)) for trial in trials]])
        return self.measured("finals", key, measure)

    def measured(self, name: str, key: str, measure: Callable[[], Measured]) -> Measured:
        """What was measured under a name and a key of what was measured, or what `measure` finds now: once, so that results stay."""
        path = self._trials.with_suffix(f".{name}")
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            if known["key"] == key:
                return known["found"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        found = measure()
        artifacts.write_json(path, {"key": key, "found": found})
        return found

    def keep_result(self, folder: Path, more: Mapping[str, Any]) -> None:
        """Keep a copy of a finished search's files but the model, and `more` by file name."""
        with artifacts.writing(self.result) as target:
            for path in folder.iterdir():
                if not path.name.startswith("model."):
                    shutil.copyfile(path, target / path.name)
            for name, value in more.items():
                artifacts.write_json(target / name, value)

    def last_plan(self) -> Plan | None:
        """The plan of the last result; None without one."""
        path = self.result / "quantizers.json"
        return plan_from_json(artifacts.read_json(path)) if path.exists() else None

    def base(self, settings_key: str) -> Plan | None:
        """The plan that a search with these settings starts from: the last result, as it was when that search first began.

        A search that is killed, or repeated, so starts where it started; its own result is no new base for it.
        """
        path = self._folder / f"tune-base-{settings_key}.json"
        if not path.exists():
            plan = self.last_plan()
            if plan is None:
                return None
            artifacts.write_json(path, plan_to_json(plan))
        return plan_from_json(artifacts.read_json(path))

    def forget_bases(self) -> None:
        """A new search from scratch makes a new last result, which then is the base."""
        for path in self._folder.glob("tune-base-*.json"):
            path.unlink()


def _to_json(trial: Trial, space: Space, candidate: MakeCandidate) -> dict[str, Any]:
    # The plan follows from the proposal but for what was given from elsewhere.
    same = candidate_key(candidate(space.plan(trial.proposal), "")) == candidate_key(trial.candidate)
    return {
        "label": trial.label,
        "proposal": trial.proposal,
        "plan": None if same else plan_to_json(trial.candidate.plan),
        "score": astuple(trial.score),
        "complete": trial.complete,
        "losses": dict(trial.losses),
        "values": dict(trial.values),
        "samples": trial.samples,
        "speed_up": trial.speed_up,
        "latency_ms": trial.latency_ms,
        "seconds": trial.seconds,
    }


def _from_json(data: dict[str, Any], space: Space, candidate: MakeCandidate) -> Trial:
    plan = space.plan(data["proposal"]) if data["plan"] is None else plan_from_json(data["plan"])
    speed_up, latency_ms = (None if data[name] is None else Spread(*data[name]) for name in ("speed_up", "latency_ms"))
    return Trial(
        label=data["label"],
        candidate=candidate(plan, data["label"]),
        proposal=data["proposal"],
        score=Score(*data["score"]),
        loss=0.0,
        complete=data["complete"],
        losses=data["losses"],
        values=data["values"],
        samples=data["samples"],
        speed_up=speed_up,
        latency_ms=latency_ms,
        seconds=data["seconds"],
    )
