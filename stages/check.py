"""Check the result in build/ against limits, for CI: exit 0 when all hold, 1 with a line for each that does not, 2 if there is none.

Limits are the section `check` of params.yaml: the drop of each metric, the speed-up, the size, fidelity. A committed baseline, written from
an earlier result, adds its own: the drop must not be above its interval, the speed-up not below it, the size and fidelity not worse. The
model is that of `package.model`. Nothing is built or measured: build/ must be what params.yaml says.

Examples:
    python -m stages.check                                            # limits of params.yaml, and of check.baseline
    python -m stages.check --write-baseline reports/baseline.json     # what build/ has now; commit it and name it in check.baseline
    python -m stages.check --markdown > comment.md                    # the same for a comment on a pull request
    python -m stages.check --model fp32                               # another model
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.common import artifacts
from stages.common.errors import UserError
from stages.configuration.schema import MODELS, Config
from stages.deployment.comment import comment
from stages.deployment.deployable import Deployable, deployable
from stages.deployment.freshness import fresh_config
from stages.deployment.limits import Finding, against, baseline_of, findings, read_baseline
from stages.stage import fail, only_options, quiet_libraries

NAME = "check"
HELD, LEFT, NOTHING = 0, 1, 2  # exit codes


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, help="what to check; by default what package.model says")
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="instead of check.baseline")
    parser.add_argument("--write-baseline", type=Path, metavar="FILE", help="write what build/ has now, and check nothing")
    parser.add_argument("--markdown", action="store_true", help="print Markdown; what fails stands on stderr, too")
    given = only_options(parser, NAME, arguments)
    quiet_libraries()
    try:
        config = fresh_config()
        model = deployable(config, given.model or config.package.model)
        if given.write_baseline is not None:
            artifacts.write_json(given.write_baseline, baseline_of(model))
            print(f"{NAME}: {given.write_baseline} has {model.title} as it is now; commit it, and name it in check.baseline")
            return HELD
        if given.baseline is not None:
            config = dataclasses.replace(config, check=dataclasses.replace(config.check, baseline=str(given.baseline)))
        return report(config, model, markdown=given.markdown)
    except (UserError, OSError) as error:
        fail(NAME, error, artifacts.BUILD)
        return NOTHING


def report(config: Config, model: Deployable, *, markdown: bool) -> int:
    """Check a model, print what was found, and return the exit code."""
    found, notes = findings(config, model), list[str]()
    if config.check.baseline is not None:
        more, notes = against(read_baseline(Path(config.check.baseline)), model)
        found += more
    if markdown:
        print(comment(config, model, found, notes))
    for note in [] if markdown else notes:
        print(f"{NAME}: note: {note}")
    for finding in found:
        if not finding.holds or not markdown:
            _say(finding)
    if not found:
        raise UserError("nothing is checked: set a limit in the section `check` of params.yaml, e.g. check.maximal_drop, or check.baseline")
    return HELD if all(finding.holds for finding in found) else LEFT


def _say(finding: Finding) -> None:
    print(f"{NAME}: {'ok' if finding.holds else 'FAILED'}: {finding.sentence}", file=sys.stdout if finding.holds else sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
