"""Compose the configuration from conf/ and params.yaml, check it, and write it in full to build/config.json.

params.yaml is the last layer, so what it says wins. Every mistake in the configuration is found here, in well under a
second and before any other stage runs. It always runs, because DVC does not watch the model and data files that the configuration
names: their hashes become part of it, and what has changed re-runs what it concerns.

Examples:
    dvc repro config                 # after an edit of params.yaml: is everything in it valid?
    python -m stages.config          # the same without DVC
    dvc params diff                  # what changed since the last commit, defaults included
"""

from __future__ import annotations

import dataclasses

from stages.common import artifacts
from stages.configuration.completion import completed
from stages.configuration.composition import compose
from stages.configuration.validation import checked


def main() -> None:
    """Write build/config.json, and not YAML: DVC takes a tenth of a second to read that, once for every stage."""
    artifacts.write_json(artifacts.CONFIG, dataclasses.asdict(completed(checked(compose()))))


if __name__ == "__main__":
    from stages.stage import execute

    execute("config", main)
