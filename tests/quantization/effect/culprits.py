"""Ten small models of different kinds, in each of which one layer suffers from quantization, and no other.

Channel 0 of what most layers give is zero (`dead`). A layer with huge weights for it computes what it did, but its other weights share few
levels. Or channel 0 is huge, and the layer behind it has no weights for it: the other channels of its input share few levels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from openvino import opset13 as op

from stages.configuration import schema
from tests.quantization.placement.written_out import layer_norm, name_all
from tests.quantization.small import convolution, matmul, model, named, parameter, random

HUGE_WEIGHT = np.float32(3000)
HUGE_CHANNEL = np.float32(200)  # beyond, ranges of the weights of other channels would be widened


class Planted(NamedTuple):
    """A model, the layer that suffers, samples, and keys of schema.Quantization."""

    model: ov.Model
    culprit: str
    samples: list[np.ndarray]
    config: Mapping[str, Any] = {}


class Layers:
    """Makes layers, one of which suffers: by its weights, or by a huge channel that `loud` gives it."""

    def __init__(self, culprit: str, loud: str | None = None) -> None:
        self.culprit, self.loud, self.count = culprit, loud, 0

    def _weights(self, name: str, *shape: int, alive: bool) -> np.ndarray:
        """[O, I, ...], of about the same effect whatever the layer."""
        self.count += 1
        weights = random(*shape, seed=self.count) / np.float32(np.sqrt(np.prod(shape[1:])))
        if not alive:
            weights[0] = 0
        if name == self.loud:
            weights[0] = HUGE_CHANNEL * random(*shape[1:], seed=99)
        if name == self.culprit:
            weights[:, 0] = 0 if self.loud else HUGE_WEIGHT
        return weights

    def conv(self, x: ov.Node, outputs: int, name: str, kernel: int = 3, alive: bool = False, **attributes: Any) -> ov.Node:
        inputs, spatial = x.output(0).get_partial_shape()[1].get_length(), len(x.output(0).get_partial_shape()) - 2
        weights = self._weights(name, outputs, inputs, *[kernel] * spatial, alive=alive)
        return convolution(x, weights, name, self._bias(outputs), pads_begin=[kernel // 2], pads_end=[kernel // 2], **attributes)

    def depthwise(self, x: ov.Node, name: str) -> ov.Node:
        channels = x.output(0).get_partial_shape()[1].get_length()
        weights = self._weights(name, channels, 1, 3, 3, alive=True)
        if name == self.culprit:
            weights = random(channels, 1, 3, 3, seed=self.count) / 3
            weights[0] = 0  # the huge channel of its input does not count
        return convolution(x, weights.reshape(channels, 1, 1, 3, 3), name, self._bias(channels), pads_begin=[1], pads_end=[1])

    def linear(self, x: ov.Node, outputs: int, name: str, alive: bool = False) -> ov.Node:
        inputs = x.output(0).get_partial_shape()[-1].get_length()
        return matmul(x, np.ascontiguousarray(self._weights(name, outputs, inputs, alive=alive).T), name, self._bias(outputs))

    def _bias(self, outputs: int) -> np.ndarray:
        bias = random(outputs, seed=self.count) / 10
        bias[0] = 0
        return bias


def relu(x: ov.Node) -> ov.Node:
    return op.relu(x)


def planted(outputs: Any, inputs: ov.Node, culprit: str, shape: tuple[int, ...] | None = None) -> Planted:
    sizes = shape or tuple(inputs.output(0).get_shape())
    return Planted(
        name_all(model(outputs, inputs)), culprit, list(np.random.default_rng(3).standard_normal((12, *sizes)).astype(np.float32))
    )


def convolutions() -> Planted:
    """A chain; the fourth layer has a huge channel in its input."""
    make, x = Layers("conv3", loud="conv2"), parameter((1, 3, 12, 12))
    node = x
    for index in range(5):
        node = relu(make.conv(node, 8, f"conv{index}"))
    return planted(make.linear(op.reduce_mean(node, np.array([2, 3]), False), 5, "head", alive=True), x, "conv3")


def depthwise() -> Planted:
    """Inverted bottlenecks; a depthwise layer has a huge channel in its input."""
    make, x = Layers("depth1", loud="wide1"), parameter((1, 3, 12, 12))
    node = make.conv(x, 8, "stem")
    for index in range(3):
        node = make.conv(relu(make.depthwise(relu(make.conv(node, 16, f"wide{index}", 1)), f"depth{index}")), 8, f"narrow{index}", 1)
    whole = schema.Scheme(granularity="pertensor")
    return planted(node, x, "depth1")._replace(config={"activations": whole})


def perceptron() -> Planted:
    """Layers of MatMul; the third one's weights are ruined."""
    make, x = Layers("layer2"), parameter((1, 32))
    node = x
    for index in range(5):
        node = relu(make.linear(node, 32, f"layer{index}"))
    return planted(make.linear(node, 10, "head", alive=True), x, "layer2")


def residual() -> Planted:
    """Residual blocks; the second layer of one has ruined weights."""
    make, x = Layers("second1"), parameter((1, 3, 12, 12))
    node = relu(make.conv(x, 8, "stem"))
    for index in range(3):
        branch = make.conv(relu(make.conv(node, 8, f"first{index}")), 8, f"second{index}")
        node = relu(named(op.add(node, branch), f"sum{index}"))
    return planted(make.conv(node, 8, "head", 1, alive=True), x, "second1")


def transformer() -> Planted:
    """A stream of tokens with LayerNorms written out; a layer behind a ReLU has a huge channel in its input."""
    make, x = Layers("narrow0", loud="wide0"), parameter((1, 16, 64))
    stream = make.linear(x, 64, "embedding", alive=True)
    for index in range(2):
        inner = relu(make.linear(layer_norm(stream), 96, f"wide{index}"))
        stream = op.add(stream, make.linear(inner, 64, f"narrow{index}", alive=True))
    return planted(make.linear(layer_norm(stream), 8, "head", alive=True), x, "narrow0")


def attention() -> Planted:
    """One layer of attention; the projection behind it has ruined weights."""
    make, x = Layers("projection"), parameter((1, 16, 32))
    query, key = (make.linear(x, 32, name, alive=True) for name in ("query", "key"))
    value = make.linear(x, 32, "value")
    scores = op.softmax(op.multiply(op.matmul(query, key, False, True), np.float32(0.2)), -1)
    mixed = relu(make.linear(op.matmul(scores, value, False, False), 32, "projection", alive=True))
    return planted(make.linear(mixed, 8, "head", alive=True), x, "projection")


def detector() -> Planted:
    """Boxes from distributions of distances, with anchors and a stride, and scores; the layer before the distances is ruined."""
    make, x = Layers("box"), parameter((1, 3, 16, 16))
    body = relu(make.conv(relu(make.conv(x, 8, "stem", strides=[2])), 16, "body"))
    distances = op.reshape(make.conv(relu(make.conv(body, 16, "before box")), 32, "box", 1, alive=True), np.array([1, 4, 8, 64]), False)
    steps = op.constant(np.arange(8, dtype=np.float32).reshape(1, 1, 8, 1))
    expected = op.reduce_sum(op.multiply(op.softmax(distances, 2), steps), np.array([2]), False)
    before, behind = op.split(expected, np.int64(1), 2).outputs()
    anchors = op.constant(np.stack(np.meshgrid(np.arange(8), np.arange(8)), 0).reshape(1, 2, 64).astype(np.float32) + 0.5)
    boxes = op.multiply(op.concat([op.subtract(anchors, before), op.add(anchors, behind)], 1), np.float32(2))
    scores = op.sigmoid(make.conv(relu(make.conv(body, 8, "before scores")), 4, "scores", 1, alive=True))
    return planted(op.concat([boxes, op.reshape(scores, np.array([1, 4, 64]), False)], 1), x, "box")


def dynamic() -> Planted:
    """Pictures of any size in batches of any size; a strided layer has ruined weights."""
    make, x = Layers("down1"), parameter((-1, 3, -1, -1))
    node = relu(make.conv(x, 8, "stem"))
    for index in range(3):
        node = relu(make.conv(node, 8, f"down{index}", strides=[2]))
    result = planted(make.conv(node, 5, "head", 1, alive=True), x, "down1", shape=(1, 3, 24, 24))
    return result._replace(samples=[sample[..., : 16 + index % 5] for index, sample in enumerate(result.samples)])


def two_outputs() -> Planted:
    """Two heads of very different size; the small one's layer has ruined weights."""
    make, x = Layers("small1"), parameter((1, 3, 12, 12))
    body = relu(make.conv(x, 8, "body"))
    large = op.multiply(make.conv(relu(make.conv(body, 8, "large0")), 8, "large1", alive=True), np.float32(500))
    small = op.multiply(make.conv(relu(make.conv(body, 8, "small0")), 8, "small1", alive=True), np.float32(0.01))
    return planted([large, small], x, "small1")


def decoder() -> Planted:
    """A signal that a strided layer shortens and a transposed one brings back, with a Concat; the layer behind that is ruined."""
    make, x = Layers("joined"), parameter((1, 4, 12, 12))
    skip = relu(make.conv(x, 8, "skip"))
    down = relu(make.conv(skip, 8, "down", strides=[2]))
    weights = op.constant(random(8, 8, 2, 2, seed=40) / 4)
    up = named(op.convolution_backprop_data(down, weights, [2, 2]), "up")
    joined = op.concat([skip, relu(up)], 1)
    return planted(make.conv(relu(make.conv(joined, 8, "joined", 1)), 3, "head", 1, alive=True), x, "joined")


KINDS: dict[str, Callable[[], Planted]] = {
    kind.__name__: kind
    for kind in (convolutions, depthwise, perceptron, residual, transformer, attention, detector, dynamic, two_outputs, decoder)
}
