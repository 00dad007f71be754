"""What is known of kernels that compute something else than the model says: the form of an entry, and the entry that is about precision.

The entries that are about operations are in quantization (placement/kernel_faults.py), as only there operations and schemes are known.
`python -m tests.benchmarks.kernel_faults` says which entries a release of OpenVINO makes void, and which are missing.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import openvino as ov


@dataclass(frozen=True)
class KernelFault:
    """A fault of OpenVINO's CPU plugin.

    Attributes:
        name: For tables and tests.
        wrong: What goes wrong, with figures.
        seen: The releases and kinds of CPUs on which that was measured.
        gone: The first release without it, e.g. `2027.0`; None: none is known.
    """

    name: str
    wrong: str
    seen: str
    gone: str | None = None

    @property
    def present(self) -> bool:
        """Whether the installed OpenVINO has it, as far as is known."""
        return self.gone is None or installed() < release(self.gone)


@functools.cache
def installed() -> tuple[int, ...]:
    """The installed OpenVINO's release."""
    return release(ov.get_version())


def release(version: str) -> tuple[int, ...]:
    """`2026.4.1-22982-...` as (2026, 4, 1)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("-")[0]))


ZERO_POINTS_IN_BF16 = KernelFault(
    name="weights with zero points in bf16",
    wrong="off by a factor of 300 in 30 of 1500 compilations with two streams; none of 1500 with one stream, none in f32",
    seen="2026.4 with AMX",
)
