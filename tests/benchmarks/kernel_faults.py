"""Which entries of the table of kernel faults hold with the installed OpenVINO, and which faults it lacks.

    python -m tests.benchmarks.kernel_faults --jobs 2              # everything: about half an hour on two cores
    python -m tests.benchmarks.kernel_faults --only Pad --verbose  # cases with this in their name, each as it is tried
    python -m tests.benchmarks.kernel_faults --random 200          # and random models, for faults that nobody thought of

Every small model of kernel_cases.py is quantized with each preset and with 4-bit weights, without the table and with it, compiled several
times with both hints, and compared with the same model whose quantization is written out in plain f32 arithmetic (runtime/fidelity.py,
whose limit is that of rounding). An entry holds where a model that computes something else, or that does not compile, does so no more with
it; it is void where all models that it is about are right without it, on a kind of CPU on which it was seen. What is wrong with the table
is missing in it.

On CPUs without VNNI products of 8 bits are added up in 16 bits and saturate. That is no fault of a kernel but of the CPU: models are built
so that it cannot happen (half of the weights' levels; wide ranges where weights have zero points or two activations are multiplied). What
else is less exact there alone, `WITHOUT_VNNI`, is left out.

The exit code is 1 where something is void or missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from openvino import opset13 as op

from stages.common.errors import UserError
from stages.common.progress import progress
from stages.configuration import schema
from stages.configuration.target_device import WEIGHTS
from stages.measurement import fidelity
from stages.measurement.written_out import is_activation_quantizer
from stages.quantization.build import build, compress_weights
from stages.quantization.model.graph import read_graph
from stages.quantization.placement import kernel_faults
from stages.quantization.placement.kernel_faults import FAULTS, PlacementFault, known_faults
from stages.quantization.placement.plan import Plan, plan_to_json
from stages.quantization.statistics.store import Statistics
from stages.runtime import engine
from stages.runtime.datasets import Sample
from tests.benchmarks.kernel_cases import Case, cases, random_cases
from tests.quantization.quantizing import plan_of, statistics_of

WAYS: dict[str, dict[str, Any]] = {
    "performance": {"preset": "performance"},
    "mixed": {"preset": "mixed"},
    "accuracy": {"preset": "accuracy"},
    "4-bit weights": {"preset": "performance", "weights": schema.Scheme(bits=4), "allow_unsupported": True},
    "4-bit asymmetric weights": {"preset": "mixed", "weights": schema.Scheme(bits=4, mode="asymmetric"), "allow_unsupported": True},
}
# Weights of grouped convolutions in three dimensions lose a bit on signed inputs.
WITHOUT_VNNI = ("grouped [1, 4, 5, 6, 6]", "depthwise [1, 4, 5, 6, 6]")
DOES_NOT_COMPILE = "does not compile"
SETTINGS = schema.Engine()


class Verdict(NamedTuple):
    """How many times further than rounding explains a compiled model is from what it says, and from where on."""

    ratio: float
    where: str = ""

    @property
    def wrong(self) -> bool:
        return self.ratio > fidelity.LIMIT

    def __str__(self) -> str:
        if np.isinf(self.ratio):
            return self.where
        return f"{self.ratio:g} times what rounding explains, from {self.where or 'somewhere'} on"


@dataclass
class Outcome:
    """A model quantized in one way.

    Attributes:
        bare: Without the table.
        whole: With it.
        without: With all but one of the entries that change its plan, by the entry's name.
    """

    name: str
    bare: Verdict
    whole: Verdict
    without: dict[str, Verdict] = field(default_factory=dict)


def outcomes(case: Case) -> Iterator[Outcome]:
    """The case in every way."""
    model, generator = case.build(), np.random.default_rng(0)
    samples = [
        {name: (generator.standard_normal(shape) * (1 + 0.3 * index) + 0.2).astype(np.float32) for name, shape in case.shapes.items()}
        for index in range(4)
    ]
    statistics = statistics_of(model, samples, pot_compatible=False)
    known: dict[str, Verdict] = {}

    def verdict(plan: Plan) -> Verdict:
        key = json.dumps(plan_to_json(plan)["quantizers"])
        if key not in known:
            known[key] = _verdict(model, statistics, plan, samples)
        return known[key]

    for way, config in WAYS.items():
        if way.startswith("4-bit") and not case.about_weights:
            continue
        whole = _plan(model, config, FAULTS)
        outcome = Outcome(f"{case.name}, {way}", verdict(_plan(model, config, ())), verdict(whole))
        for fault in {fault for found in known_faults(read_graph(model), "ANY").values() for fault in found}:
            plan = _plan(model, config, tuple(other for other in FAULTS if other is not fault))
            if plan.quantizers != whole.quantizers:
                outcome.without[fault.name] = verdict(plan)
        yield outcome


def _plan(model: ov.Model, config: dict[str, Any], table: tuple[PlacementFault, ...]) -> Plan:
    """The plan with only these entries in the table."""
    kernel_faults.FAULTS = table
    try:
        return plan_of(model, **config)
    finally:
        kernel_faults.FAULTS = FAULTS


def _verdict(model: ov.Model, statistics: Statistics, plan: Plan, samples: list[dict[str, Any]]) -> Verdict:
    if not plan.quantizers:
        return Verdict(0.0)
    try:
        result = fidelity.check(quantized(model, statistics, plan), SETTINGS, [Sample(sample) for sample in samples], "f32")
    except (UserError, RuntimeError) as error:
        return Verdict(np.inf, f"{DOES_NOT_COMPILE}: {engine.last_line(error)[-120:]}")
    if "skipped" in result:
        return Verdict(0.0, result["skipped"])
    first = result["first"]
    return Verdict(result["ratio"], "" if first is None else f"{first['type']} {first['layer']}")


def quantized(model: ov.Model, statistics: Statistics, plan: Plan) -> ov.Model:
    """The quantized model as it is stored, such that 16-bit sums do not saturate where the CPU has no wider ones."""
    if not fidelity.sums_saturate(SETTINGS.device):
        result, _ = build(model, statistics, plan)
    else:
        # Those with zero points are not run on integers when halved.
        halved = (replace(entry, doubled=entry.kind == WEIGHTS and entry.scheme.symmetric) for entry in plan.quantizers)
        result, _ = build(model, statistics, replace(plan, quantizers=tuple(halved)))
        _widen(result, everywhere=any(entry.kind == WEIGHTS and not entry.scheme.symmetric for entry in plan.quantizers))
    compress_weights(result)
    return result


def _widen(model: ov.Model, everywhere: bool) -> None:
    """Leave three quarters of the levels unused where two activations are multiplied, or for all activations."""
    quantizers = [node for node in model.get_ops() if is_activation_quantizer(node)]
    if not everywhere:
        products = [_source(node) for node in model.get_ops() if node.get_type_name() == "MatMul"]
        quantizers = [node for node in quantizers if node.get_name() in {source.get_name() for source in products}]
    for node in quantizers:
        for port in (1, 2):  # one constant for input and output, as `build` has it
            border = op.constant(4 * node.input_value(port).get_node().data).output(0)
            for same in (port, port + 2):
                node.input(same).replace_source_output(border)


def _source(matmul: ov.Node) -> ov.Node:
    """What the second input of a MatMul is made of."""
    source = matmul.input_value(1).get_node()
    while source.get_type_name() in ("Reshape", "Transpose", "Convert"):
        source = source.input_value(0).get_node()
    return source


# ------------------------------------------------------------------------------------------------------------- everything


def _chosen(arguments: argparse.Namespace) -> list[Case]:
    chosen = [case for case in (*cases(), *random_cases(arguments.random)) if any(part in case.name for part in arguments.only)]
    skipped = WITHOUT_VNNI if fidelity.sums_saturate(SETTINGS.device) else ()
    return [case for case in chosen if not case.name.endswith(skipped or ("\n",))][: arguments.limit]


def _part(arguments: argparse.Namespace, index: int) -> list[Outcome]:
    """One process's case: models cannot be sent from one to another."""
    fidelity.COMPILATIONS["THROUGHPUT"] = arguments.compilations
    return list(outcomes(_cases_of(arguments)[index]))


_known: list[Case] = []


def _cases_of(arguments: argparse.Namespace) -> list[Case]:
    if not _known:
        _known.extend(_chosen(arguments))
    return _known


def _all(arguments: argparse.Namespace) -> Iterator[list[Outcome]]:
    count = len(_cases_of(arguments))
    if arguments.jobs == 1:
        yield from progress((_part(arguments, index) for index in range(count)), "cases", total=count)
        return
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        yield from progress(pool.map(_part, [arguments] * count, range(count)), "cases", total=count)


def main() -> int:
    """Try everything and print what holds, what is void and what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="only cases with one of these in their name")
    parser.add_argument("--limit", type=int, help="only so many cases")
    parser.add_argument("--random", type=int, default=0, help="so many random models besides")
    parser.add_argument("--compilations", type=int, default=3, help="compilations with hint THROUGHPUT")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--verbose", action="store_true", help="print every model that is wrong without the table")
    arguments = parser.parse_args()
    found: list[Outcome] = []
    for part in _all(arguments):
        found += part
        for outcome in part:
            if arguments.verbose and outcome.bare.wrong:
                print(f"wrong without the table: {outcome.name}: {outcome.bare}", flush=True)
            if outcome.whole.wrong:
                print(f"MISSING: {outcome.name}: {outcome.whole}", flush=True)
    return report(found)


def kind_of_cpu() -> str:
    """As entries name it: what kernels there are."""
    if fidelity.sums_saturate(SETTINGS.device):
        return "AVX2"
    return "AMX" if "BF16" in engine.core().get_property(SETTINGS.device, "OPTIMIZATION_CAPABILITIES") else "AVX512"


def report(found: Iterable[Outcome]) -> int:
    """Print which entries hold and which are void; 1 if the table is not as it should be."""
    found = list(found)
    tried: dict[str, list[tuple[Verdict, str]]] = defaultdict(list)
    for outcome in found:
        for name, verdict in outcome.without.items():
            tried[name].append((verdict, outcome.name))
    print(f"OpenVINO {ov.get_version()}, {engine.core().get_property('CPU', 'FULL_DEVICE_NAME')}: {len(found)} models")
    void, kind = 0, kind_of_cpu()
    for fault in FAULTS:
        needed = [(verdict.ratio, verdict, name) for verdict, name in tried[fault.name] if verdict.wrong]
        if not tried[fault.name]:
            print(f"not tried: {fault.name}")
        elif needed:
            _, verdict, name = max(needed)
            print(f"holds: {fault.name}: {len(needed)} of {len(tried[fault.name])} models are wrong without it ({name}: {verdict})")
        elif kind not in fault.seen:
            count = len(tried[fault.name])
            print(f"not with {kind}: {fault.name}: all of {count} models are right without it (it was seen with {fault.seen})")
        else:
            void += 1
            print(f"VOID: {fault.name}: all of {len(tried[fault.name])} models are right without it (it was seen with {fault.seen})")
    missing = [outcome for outcome in found if outcome.whole.wrong]
    for outcome in missing:
        print(f"MISSING: {outcome.name}: {outcome.whole}")
    right = max((outcome.whole.ratio for outcome in found if not outcome.whole.wrong), default=0.0)
    print(f"{void} void, {len(missing)} missing; the largest ratio that counts as right is {right:.3g}, of {fidelity.LIMIT:g}")
    return 1 if void or missing else 0


if __name__ == "__main__":
    sys.exit(main())
