"""What the tests of the configuration share."""

from __future__ import annotations

from collections.abc import Callable

from stages.configuration.schema import Config

EXAMPLE = ("model: ppocrv4_rec", "data: text_lines", "metric: text")

Resolve = Callable[..., Config]
