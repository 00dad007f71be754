"""What the structure of a model tells about the signs of its tensors."""

from __future__ import annotations

from stages.quantization.model.graph import Port

# Operations that only rearrange values: what is known of a whole tensor is known of their input.
REARRANGING = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze"})
NON_NEGATIVE = frozenset({"Abs", "Exp", "HardSigmoid", "HSigmoid", "ReLU", "Relu", "Sigmoid", "SoftMax", "Softmax", "Sqrt"})
KEEPING_SIGN = REARRANGING | frozenset({"AvgPool", "Concat", "MaxPool", "ReduceMax", "ReduceMean"})


def is_non_negative(port: Port) -> bool:
    """Whether an operation never gives negative values: its range starts at zero, however far above its lowest value is."""
    node = port.node
    if node.type in KEEPING_SIGN:
        return all(map(is_non_negative, node.inputs if node.type == "Concat" else node.inputs[:1]))
    return node.type in NON_NEGATIVE or (node.type == "Clamp" and float(node.attributes()["min"]) >= 0)
