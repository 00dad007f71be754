"""What a check found, as Markdown for a comment on a pull request."""

from __future__ import annotations

from collections.abc import Sequence

from stages.common.units import amount, difference, metric_value, number
from stages.configuration.schema import Config
from stages.deployment.deployable import Deployable
from stages.deployment.limits import Finding


def comment(config: Config, model: Deployable, found: Sequence[Finding], notes: Sequence[str]) -> str:
    """A verdict, what was measured, what was checked, and what could not be."""
    failed = [finding for finding in found if not finding.holds]
    if failed:
        verdict = f"❌ **{model.title} of {config.model.name} leaves {len(failed)} of {len(found)} limits**"
    elif found:
        verdict = f"✅ **{model.title} of {config.model.name} keeps all {len(found)} limits**"
    else:
        verdict = f"⚠️ **{model.title} of {config.model.name}: nothing was checked**"
    lines = [verdict, "", *_measured(model)]
    if found:
        lines += ["", "| checked | measured | limit | |", "|---|---|---|---|"]
        lines += [
            f"| {finding.what} | {_cell(finding.value)} | {_cell(finding.limit)} | {'✅' if finding.holds else '❌'} |"
            for finding in sorted(found, key=lambda finding: finding.holds)
        ]
    return "\n".join([*lines, *(["", *(f"- {note}" for note in notes)] if notes else [])])


def _measured(model: Deployable) -> list[str]:
    lines = ["| | FP32 | now | drop |", "|---|---|---|---|"]
    for name, metric in model.metrics.items():
        low, high = metric["drop_low"], metric["drop_high"]
        interval = "" if low is None else f" [{difference(metric, low)}, {difference(metric, high)}]"
        values = (
            metric_value(metric, metric["fp32"]),
            metric_value(metric, metric["value"]),
            f"{amount(metric, metric['drop'])}{interval}",
        )
        lines.append(f"| {name} | {' | '.join(values)} |")
    if model.latency_ms is not None and model.speed_up is not None:
        lines.append(f"| latency | | {number(model.latency_ms['median'])} ms | {model.speed_up['median']:.2f}x as fast |")
    return [*lines, f"| size | | {model.size_bytes / 1e6:.2f} MB | |"]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
