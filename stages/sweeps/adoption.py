"""Which job of a sweep to adopt, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.common.units import difference, ratio
from stages.report.advice import SWEEP, Advice, lines
from stages.report.choice import Candidate, choose, equally_fast
from stages.sweeps import job
from stages.sweeps.results import Variant


@dataclass(frozen=True)
class Adoption:
    """What to do after a sweep.

    Attributes:
        best: The model to adopt; None where none is.
        verdict: In a sentence.
        others: Why not the others that one might ask about, a sentence each.
        advice: What to do next; the first one is about the verdict.
    """

    best: Variant | None
    verdict: str
    others: tuple[str, ...]
    advice: tuple[Advice, ...]

    def lines(self) -> list[str]:
        """For a terminal: the verdict, and commands in lines of their own, the last one that which adopts the best job."""
        found = [f"best: {self.verdict}", *(f"      {other}" for other in self.others)]
        if self.best is not None:
            return [*found, f"adopt one: {self.advice[0].command}"]
        return [*found, *lines(self.advice)]


def adoption(place: Path, variants: Sequence[Variant]) -> Adoption:
    """The job to adopt.

    Args:
        place: The sweep's folder.
        variants: Of all jobs; at least one of them succeeded.
    """
    done = [each for each in variants if each.error is None]
    if len({(each.config["model"]["name"], each.config["data"]["name"]) for each in done}) > 1:
        text = "jobs differ in their model or data: what is best is a question for each of these"
        return Adoption(None, text, (), ())
    candidates = {each.title: each for each in done}
    known = [each.candidate for each in done]
    best, fp32 = choose(known), f"FP32 in {done[0].evaluation['precisions']['default']}"
    if best is None:
        return _none(known, done)
    chosen = candidates[best.name]
    if not best.faster:
        text = f"no job is worth it: of those that keep the budget the fastest, {best.name}, is {_speed(best, fp32)}"
        steps = [Advice(f"ship {fp32}, {chosen.model.parents[1] / 'prepare' / 'model.xml'}")]
        if not any(each.kind == "tune" for each in done):
            steps.append(Advice("let `tune` look for a faster one", f"{SWEEP} tune.enabled=true"))
        return Adoption(None, text, tuple(_others(best, known, fp32)), tuple(steps))
    text = f"adopt {best.name}: {_speed(best, fp32)}; {'; '.join(_lost(best))}"
    command = f"python -m stages.promote {job.folder_of(place, chosen.number)}"
    deploy = Advice(f"adopt {best.name}; its model is {chosen.model}", command)
    return Adoption(chosen, text, tuple(_others(best, known, fp32)), (deploy,))


def _none(known: Sequence[Candidate], done: Sequence[Variant]) -> Adoption:
    """No job keeps the budget."""
    right = [each for each in known if not each.faulty]
    if not right:
        return Adoption(None, "no job's model is computed by this device as it says", (), ())
    closest = min(right, key=lambda each: each.excess)
    text = f"no job keeps the accuracy budget; {closest.name} comes closest: {'; '.join(_lost(closest))}"
    if any(each.kind == "accuracy_aware" for each in done):
        step = Advice("allow more (accuracy_aware.maximal_drop), or calibrate on more and other samples (data.calibration)")
    else:
        preset = next(each.config["quantization"]["preset"] for each in done if each.title == closest.name)
        step = Advice(
            "give the layers that hurt back to floating point until the budget holds",
            f"{SWEEP} quantization.preset={preset} accuracy_aware.enabled=true",
        )
    return Adoption(None, text, (), (step,))


def _others(best: Candidate, known: Sequence[Candidate], fp32: str) -> Iterator[str]:
    """Why not those that are faster, or as fast."""
    for each in known:
        if each is best or each.ratio is None or best.ratio is None:
            continue
        if each.faulty:
            yield f"{each.name}: the device computes something else than the model says"
        elif not each.acceptable and each.ratio["median"] > best.ratio["median"]:
            yield f"{each.name} is {_speed(each, fp32)}, but {'; '.join(_lost(each, beyond=True))}"
        elif not each.acceptable:
            yield f"{each.name} is no faster, and {'; '.join(_lost(each, beyond=True))}"
        elif equally_fast(each, best):
            yield f"{each.name} is as fast, and {'; '.join(_lost(each))}"


def _speed(each: Candidate, fp32: str) -> str:
    return "not timed" if each.ratio is None else ratio(each.ratio, fp32)


def _lost(each: Candidate, *, beyond: bool = False) -> Iterator[str]:
    """What its metrics lost beside what is allowed: the first one, and all that lost too much; with `beyond`, those alone."""
    for place, loss in enumerate(each.losses):
        if not loss.acceptable or (place == 0 and not beyond):
            allowed = "" if loss.allowed is None else f", {difference(loss.metric, loss.allowed)} allowed"
            yield f"{loss.shown()}{allowed}"
