"""Blocks of operations that stay in floating point because quantizing inside them costs accuracy or gains nothing.

A pattern is a few lines of text, one per operation:

    name[*] = Type|Type(input, input, ...)

Inputs name earlier lines; `const` is a constant; `_` is anything. Listed inputs of commutative operations match in
either order, a single listed input on any port; inputs that are not listed are free. A `*` marks the operation: it gets
no quantizer on its inputs and quantizers do not move up through it. The last line anchors the pattern: matching walks up
from it. `FC` stands for Convolution (also grouped) or MatMul. (POT's ignored patterns)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from stages.quantization.model.graph import OPERATIONS_WITH_WEIGHTS

ALIASES = {
    "FC": "Convolution|GroupConvolution|MatMul",
    "WEIGHTED": "|".join(sorted(OPERATIONS_WITH_WEIGHTS)),
    "ACTIVATION": "Relu|PRelu|Sigmoid",
    "ELEMENTWISE": "Add|Multiply|Subtract|Divide|Maximum|Minimum|Power",
}
COMMUTATIVE = frozenset({"Add", "Multiply", "Maximum", "Minimum", "Equal", "NotEqual"})

EVERY_DEVICE = frozenset({"ANY", "CPU", "CPU_SPR", "GPU", "NPU", "GNA"})
CPU_GPU = frozenset({"ANY", "CPU", "CPU_SPR", "GPU"})


class Line(NamedTuple):
    """One operation of a pattern."""

    name: str
    marked: bool
    types: frozenset[str]
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Pattern:
    """A block of operations and the devices on which it stays in floating point."""

    name: str
    lines: tuple[Line, ...]
    devices: frozenset[str] = EVERY_DEVICE
    single_consumers_from: str | None = None  # from this operation up to the weighted one nothing else may consume

    @property
    def anchor(self) -> Line:
        """The operation from which matching walks up."""
        return self.lines[-1]


def pattern(name: str, text: str, devices: frozenset[str] = EVERY_DEVICE, single_consumers_from: str | None = None) -> Pattern:
    """Parse the text form of a pattern."""
    lines = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        parsed = re.fullmatch(r"(\w+)(\*?)\s*=\s*([\w|]+)\((.*)\)", line)
        if parsed is None:
            raise ValueError(f"pattern {name}: cannot read {line!r}")
        types = "|".join(ALIASES.get(part, part) for part in parsed[3].split("|"))
        inputs = tuple(filter(None, (part.strip() for part in parsed[4].split(","))))
        lines.append(Line(parsed[1], bool(parsed[2]), frozenset(types.split("|")), inputs))
    return Pattern(name, tuple(lines), devices, single_consumers_from)


def _after_parameter(name: str, tail: str) -> list[Pattern]:
    """Preprocessing directly after a Parameter, optionally behind Convert and Transpose."""
    heads = {
        "": "x = Parameter()",
        " (Convert)": "p = Parameter()\nx* = Convert(p)",
        " (Transpose)": "p = Parameter()\nx* = Transpose(p)",
        " (Convert, Transpose)": "p = Parameter()\nc* = Convert(p)\nx* = Transpose(c)",
    }
    return [pattern(name + suffix, f"{head}\n{tail}") for suffix, head in heads.items()]


# What may follow a weighted operation before a pattern goes on: name, lines, and the last of them.
AFTER_WEIGHTED = (
    ("", "", "op"),
    (" and bias", "bias* = Add(op, const)", "bias"),
    (" and activation", "activation* = ACTIVATION(op)", "activation"),
    (", bias and activation", "bias* = Add(op, const)\nactivation* = ACTIVATION(bias)", "activation"),
)

PATTERNS: tuple[Pattern, ...] = (
    pattern("bias of a weighted operation", "op = WEIGHTED()\nbias* = Add(op, const)"),
    pattern("bias and Swish", "op = FC()\nbias* = Add(op, const)\nswish* = Swish(bias)"),
    pattern(
        "squeeze-and-excitation",
        """pool = ReduceMean()
        squeeze* = FC(pool)
        squeeze_bias* = Add(squeeze, const)
        activation* = Relu|PRelu|Swish(squeeze_bias)
        excite* = FC(activation)
        excite_bias* = Add(excite, const)
        gate* = Sigmoid(excite_bias)
        output = Multiply(gate)""",
    ),
    pattern("scale and shift", "scale = Multiply()\nshift* = Add(scale, const)"),
    pattern(
        "scale and shift before an output",
        "start = Add()\nscale* = Multiply(start, const)\nshift* = Add(scale, const)\noutput = Result(shift)",
    ),
    pattern("MVN with scale and shift", "mvn = MVN()\nscale* = Multiply(mvn, const)\nshift* = Add(scale, const)"),
    pattern("scaled NormalizeL2", "normalize = NormalizeL2()\nscale* = Multiply(normalize)"),
    *_after_parameter("input preprocessing: scale and shift", "scale* = Multiply(x, const)\nshift* = Add(scale, const)"),
    *_after_parameter("input preprocessing: shift", "shift* = Add(x, const)"),
    *_after_parameter("input preprocessing: scale", "scale* = Multiply(x)"),
    pattern("input preprocessing: subtraction", "x = Parameter()\nshift* = Subtract(x)"),
    pattern(
        "input preprocessing: reversed channels, scale and shift",
        "p = Parameter()\ns* = Split(p, const)\nx* = Concat(s)\nscale* = Multiply(x, const)\nshift* = Add(scale, const)",
    ),
    pattern(
        "input preprocessing: reversed channels and shift", "p = Parameter()\ns* = Split(p, const)\nx* = Concat(s)\nshift* = Add(x, const)"
    ),
    pattern(
        "decomposed softmax",
        "e* = Exp()\ntotal* = ReduceSum(e, const)\ninverse* = Power(total, const)\noutput* = Multiply(e, inverse)",
    ),
    pattern("decomposed softmax (division)", "e* = Exp()\ntotal* = ReduceSum(e, const)\noutput* = Divide(e, total)"),
    pattern(
        "attention output (reshaped softmax)",
        """s* = Softmax()
        weights* = Reshape(s, const)
        v* = Add()
        r* = Reshape(v, const)
        values* = Transpose(r)
        output* = MatMul(weights, values)""",
    ),
    pattern(
        "attention output",
        "weights* = Softmax()\nv* = Add()\nr* = Reshape(v, const)\nvalues* = Transpose(r)\noutput* = MatMul(weights, values)",
    ),
    pattern(
        "attention output (reshaped values)",
        "weights* = Softmax()\nv* = Reshape()\nt* = Transpose(v)\nvalues* = Reshape(t)\noutput* = MatMul(weights, values)",
    ),
    pattern(
        "attention output (gathered values)",
        """weights* = Softmax()
        v* = Add()
        r* = Reshape(v, const)
        t* = Transpose(r)
        values* = Gather(t)
        output* = MatMul(weights, values)""",
        devices=EVERY_DEVICE - {"CPU_SPR"},
    ),
    pattern(
        "h-swish after a weighted operation",
        "op = FC()\nbias* = Add(op, const)\nshift* = Add(bias, const)\nclamp* = Clamp(shift)\noutput* = Multiply(clamp, bias)",
    ),
    pattern(
        "scaled h-swish after a weighted operation",
        """op = FC()
        bias* = Add(op, const)
        shift* = Add(bias, const)
        clamp* = Clamp(shift)
        product* = Multiply(clamp, bias)
        output* = Multiply(product, const)""",
    ),
    pattern(
        "h-swish",
        """start = Add|Multiply|ReduceMean|Squeeze()
        shift* = Add(start, const)
        clamp* = Clamp(shift)
        scale* = Multiply(clamp, const)
        output* = Multiply(scale, start)""",
    ),
    pattern(
        "batch normalisation of an unsqueezed tensor",
        "u* = Unsqueeze(_, const)\nscale* = Multiply(u, const)\nshift* = Add(scale, const)\noutput* = Squeeze(shift, const)",
    ),
    pattern(
        "batch index",
        """a* = Subtract()
        b* = Multiply(a)
        c* = Multiply(b, const)
        d* = Add(c)
        e* = Unsqueeze(d)
        f* = Concat(e)
        g* = Concat(f)
        h* = Reshape(g)
        output* = Convolution(h)""",
    ),
    pattern(
        "detection output and shift",
        "detection* = ExperimentalDetectronDetectionOutput|ExperimentalDetectronROIFeatureExtractor()\nshift* = Add(detection, const)",
    ),
    pattern("inverted comparison", "equal* = Equal()\noutput* = LogicalNot(equal)"),
    *(
        pattern(
            f"scale and shift after a weighted operation{suffix}",
            f"op = FC()\n{middle}\nscale* = Multiply({last}, const)\nshift* = Add(scale, const)",
            devices=CPU_GPU,
            single_consumers_from="scale",
        )
        for suffix, middle, last in AFTER_WEIGHTED
    ),
    *(
        pattern(
            f"element-wise constant after a weighted operation{suffix}",
            f"op = FC()\n{middle}\noutput* = ELEMENTWISE({last}, const)",
            devices=CPU_GPU,
            single_consumers_from="output",
        )
        for suffix, middle, last in AFTER_WEIGHTED
    ),
    pattern("scaled clamp", "clamp* = Clamp()\nscale* = Multiply(clamp, const)", devices=CPU_GPU | {"NPU"}),
    pattern("memory output", "assign = Assign()\noutput* = Result(assign)", devices=frozenset({"GNA"})),
)
