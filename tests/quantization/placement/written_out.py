"""Small models of blocks that frameworks export operation by operation: each lies between layers with weights, as in a real network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from openvino import opset13 as op

from tests.quantization.small import convolution, matmul, model, parameter, random

TOKENS, WIDTH, HEADS = 16, 64, 4
SEQUENCE = (1, TOKENS, WIDTH)
PICTURE = (1, 8, 16, 16)


class Written(NamedTuple):
    """A model with a written-out block, and samples for it."""

    model: ov.Model
    samples: list[Any]


def name_all(tested: ov.Model) -> ov.Model:
    """Name what goes by a running number of the process: the type, and its count of this type in the model."""
    counts: dict[str, int] = {}
    for node in tested.get_ordered_ops():
        kind = node.get_type_name()
        if node.get_friendly_name() == node.get_name():
            node.set_friendly_name(f"{kind}_{counts.setdefault(kind, 0)}")
            counts[kind] += 1
    return tested


def sequences(count: int = 24, shape: Sequence[int] = SEQUENCE) -> list[np.ndarray]:
    """Tokens of different strength, as a residual stream has them."""
    generator = np.random.default_rng(3)
    strength = np.linspace(0.7, 1.4, shape[1])[:, None]
    # Without rare values, which ranges would clip: how much that costs is another matter.
    return list((np.clip(generator.standard_normal((count, *shape)), -2.5, 2.5) * strength).astype(np.float32))


def pictures(count: int = 24, shape: Sequence[int] = PICTURE) -> list[np.ndarray]:
    return list(np.random.default_rng(5).standard_normal((count, *shape)).astype(np.float32))


def linear(x: ov.Node, outputs: int, name: str) -> ov.Node:
    inputs = x.output(0).get_partial_shape()[-1].get_length()
    return matmul(x, random(inputs, outputs, seed=len(name)) / np.float32(np.sqrt(inputs)), name, bias=0.1 * random(1, 1, outputs))


def values(given: Any) -> ov.Node:
    return op.constant(np.asarray(given, np.float32))


def number(value: float) -> ov.Node:
    return op.constant(np.float32(value))


def mean(x: ov.Node) -> ov.Node:
    return op.reduce_mean(x, np.array([-1]), True)


def scaled(x: ov.Node) -> ov.Node:
    gamma, beta = 1 + 0.2 * random(1, 1, WIDTH), 0.2 * random(1, 1, WIDTH, seed=1)
    return op.add(op.multiply(x, values(gamma)), values(beta))


def layer_norm(x: ov.Node) -> ov.Node:
    centred = op.subtract(x, mean(x))
    variance = mean(op.power(centred, number(2.0)))
    return scaled(op.divide(centred, op.sqrt(op.add(variance, number(1e-5)))))


def layer_norm_by_squares(x: ov.Node) -> ov.Node:
    """E[x²] − E[x]²."""
    average = mean(x)
    variance = op.subtract(mean(op.multiply(x, x)), op.multiply(average, average))
    return scaled(op.divide(op.subtract(x, average), op.sqrt(op.add(variance, number(1e-5)))))


def layer_norm_by_reciprocal(x: ov.Node) -> ov.Node:
    centred = op.subtract(x, mean(x))
    variance = mean(op.multiply(centred, centred))
    inverse = op.power(op.add(variance, number(1e-5)), number(-0.5))
    return scaled(op.multiply(centred, inverse))


def rms_norm(x: ov.Node) -> ov.Node:
    inverse = op.divide(number(1.0), op.sqrt(op.add(mean(op.power(x, number(2.0))), number(1e-6))))
    return op.multiply(op.multiply(x, inverse), values(1 + 0.2 * random(1, 1, WIDTH)))


def gelu_by_erf(x: ov.Node) -> ov.Node:
    half = op.multiply(x, op.add(op.erf(op.divide(x, number(np.sqrt(2.0)))), number(1.0)))
    return op.multiply(half, number(0.5))


def gelu_by_tanh(x: ov.Node) -> ov.Node:
    return _gelu_by_tanh(x, op.power(x, number(3.0)))


def gelu_by_products(x: ov.Node) -> ov.Node:
    return _gelu_by_tanh(x, op.multiply(op.multiply(x, x), x))


def _gelu_by_tanh(x: ov.Node, cube: ov.Node) -> ov.Node:
    inner = op.multiply(op.add(x, op.multiply(cube, number(0.044715))), number(np.sqrt(2 / np.pi)))
    return op.multiply(op.multiply(x, number(0.5)), op.add(op.tanh(inner), number(1.0)))


def swish(x: ov.Node) -> ov.Node:
    return op.multiply(x, op.sigmoid(x))


def between_layers(block: Callable[[ov.Node], ov.Node]) -> Written:
    """Linear, the block, linear."""
    x = parameter(SEQUENCE)
    return Written(name_all(model(linear(block(linear(x, WIDTH, "first")), WIDTH, "second"), x)), sequences())


def residual_layer_norm(norm: Callable[[ov.Node], ov.Node]) -> Written:
    """Two residual branches in a row, each behind a normalisation: a Transformer's stream of tokens."""
    x = parameter(SEQUENCE)
    stream = linear(x, WIDTH, "embedding")
    for index in range(2):
        inner = op.relu(linear(norm(stream), 2 * WIDTH, f"wide{index}"))
        stream = op.add(stream, linear(inner, WIDTH, f"narrow{index}"))
    return Written(name_all(model(linear(norm(stream), WIDTH, "head"), x)), sequences())


# ----------------------------------------------------------------------------------------------------------- attention


def heads(x: ov.Node, name: str) -> ov.Node:
    """[1, heads, tokens, width of a head]."""
    split = op.reshape(linear(x, WIDTH, name), np.array([0, 0, HEADS, -1]), True)
    return op.transpose(split, np.array([0, 2, 1, 3]))


def softmax_by_exp(scores: ov.Node) -> ov.Node:
    raised = op.exp(op.subtract(scores, op.reduce_max(scores, np.array([-1]), True)))
    return op.divide(raised, op.reduce_sum(raised, np.array([-1]), True))


def softmax(scores: ov.Node) -> ov.Node:
    return op.softmax(scores, -1)


def rotary(x: ov.Node) -> ov.Node:
    """Pairs of features turned by an angle that grows with the place."""
    half = WIDTH // HEADS // 2
    angles = np.arange(TOKENS)[:, None] * 1.0 / 10000 ** (np.arange(half) / half)[None]
    cosine, sine = (np.concatenate([f(angles)] * 2, -1)[None, None].astype(np.float32) for f in (np.cos, np.sin))
    first, second = op.split(x, np.int64(-1), 2).outputs()
    turned = op.concat([op.multiply(second, number(-1.0)), first], -1)
    return op.add(op.multiply(x, values(cosine)), op.multiply(turned, values(sine)))


def rotary_by_place(x: ov.Node, place: ov.Node) -> ov.Node:
    """As in a language model: the angles are computed from an input."""
    half = WIDTH // HEADS // 2
    rate = (1.0 / 10000 ** (np.arange(half) / half)).astype(np.float32).reshape(1, 1, 1, half)
    angles = op.multiply(op.unsqueeze(place, np.array([1, 3])), values(rate))
    both = op.concat([angles, angles], -1)
    first, second = op.split(x, np.int64(-1), 2).outputs()
    turned = op.concat([op.multiply(second, number(-1.0)), first], -1)
    return op.add(op.multiply(x, op.cos(both)), op.multiply(turned, op.sin(both)))


def attention(
    normalised: Callable[[ov.Node], ov.Node] = softmax, turn: Callable[[ov.Node], ov.Node] = lambda x: x, mask: ov.Node | None = None
) -> tuple[ov.Node, ov.Node]:
    """The model's input and output of one attention layer."""
    x = parameter(SEQUENCE)
    query, key, value = turn(heads(x, "query")), turn(heads(x, "key")), heads(x, "value")
    # Scores that leave a softmax some choice, as a trained model's: of larger ones 8 bits of query and key cost 8 dB by themselves.
    scores = op.multiply(op.matmul(query, key, False, True), number(0.3 * (WIDTH / HEADS) ** -0.5))
    if mask is not None:
        scores = op.add(scores, mask)
    mixed = op.matmul(normalised(scores), value, False, False)
    joined = op.reshape(op.transpose(mixed, np.array([0, 2, 1, 3])), np.array([0, 0, WIDTH]), True)
    return x, linear(joined, WIDTH, "output")


def plain_attention(normalised: Callable[[ov.Node], ov.Node] = softmax, turn: Callable[[ov.Node], ov.Node] = lambda x: x) -> Written:
    x, result = attention(normalised, turn)
    return Written(name_all(model(result, x)), sequences())


def masked_attention() -> Written:
    """A mask of ones and zeros becomes 0 and −10,000 beside the scores."""
    valid = parameter((1, 1, 1, TOKENS), "valid")
    x, result = attention(mask=op.multiply(op.subtract(number(1.0), valid), number(-1e4)))
    samples = [
        {"x": x, "valid": (np.arange(TOKENS) < 6 + i % 11).astype(np.float32).reshape(1, 1, 1, -1)} for i, x in enumerate(sequences())
    ]
    return Written(name_all(model(result, x, valid)), samples)


def rotary_attention() -> Written:
    place = parameter((1, TOKENS), "place")
    x, result = attention(turn=lambda value: rotary_by_place(value, place))
    samples = [{"x": x, "place": np.arange(i, i + TOKENS, dtype=np.float32)[None]} for i, x in enumerate(sequences())]
    return Written(name_all(model(result, x, place)), samples)


# ------------------------------------------------------------------------------------------------------------ pictures


def kernel(outputs: int, inputs: int, size: int, seed: int = 0) -> np.ndarray:
    return random(outputs, inputs, size, size, seed=seed) * np.float32(np.sqrt(2.0 / (inputs * size * size)))


def layer(x: ov.Node, outputs: int, name: str, size: int = 3) -> ov.Node:
    inputs = x.output(0).get_partial_shape()[1].get_length()
    return convolution(
        x, kernel(outputs, inputs, size, len(name)), name, bias=0.1 * random(outputs), pads_begin=[size // 2], pads_end=[size // 2]
    )


def squeeze_and_excitation() -> Written:
    x = parameter(PICTURE)
    inside = op.relu(layer(x, 16, "first"))
    pooled = op.reduce_mean(inside, np.array([2, 3]), True)
    gate = op.sigmoid(layer(op.relu(layer(pooled, 4, "squeeze", 1)), 16, "excite", 1))
    return Written(name_all(model(layer(op.multiply(inside, gate), 8, "second"), x)), pictures())


def input_normalisation() -> Written:
    """(x / 255 − mean) / deviation on bytes."""
    x = parameter((1, 16, 16, 3), "x", np.uint8)
    channels_first = op.transpose(op.convert(x, "f32"), np.array([0, 3, 1, 2]))
    shares = op.divide(channels_first, number(255.0))
    centred = op.subtract(shares, values(np.reshape([0.485, 0.456, 0.406], (1, 3, 1, 1))))
    normalised = op.divide(centred, values(np.reshape([0.229, 0.224, 0.225], (1, 3, 1, 1))))
    samples = list(np.random.default_rng(7).integers(0, 256, (24, 1, 16, 16, 3), np.uint8))
    return Written(name_all(model(layer(op.relu(layer(normalised, 8, "first")), 8, "second"), x)), samples)


def residual_network() -> Written:
    x = parameter(PICTURE)
    stream = op.relu(layer(x, 8, "stem"))
    for index in range(2):
        inner = op.relu(layer(stream, 8, f"first{index}"))
        stream = op.relu(op.add(stream, layer(inner, 8, f"second{index}")))
    return Written(name_all(model(layer(stream, 8, "head"), x)), pictures())


BINS = 16


def box_decoding(distances: Callable[[ov.Node], ov.Node], shape: Sequence[int] = PICTURE) -> Written:
    """A detector's head: per place and side a distribution over distances, its mean, and boxes of corner form in pixels."""
    x = parameter(shape)
    places = shape[2] * shape[3]
    inside = op.relu(layer(op.relu(layer(x, 32, "stem")), 32, "neck"))
    sides = op.reshape(layer(inside, 4 * BINS, "sides", 1), np.array([1, 4, BINS, places]), False)
    classes = op.sigmoid(op.reshape(layer(inside, 5, "classes", 1), np.array([1, 5, places]), False))
    distance = distances(sides)  # [1, 4, places]
    near, far = op.split(distance, np.int64(1), 2).outputs()
    grid = np.stack(np.meshgrid(np.arange(shape[3]), np.arange(shape[2]), indexing="xy")).reshape(1, 2, places).astype(np.float32) + 0.5
    corner, other = op.subtract(values(grid), near), op.add(values(grid), far)
    centre, size = op.divide(op.add(corner, other), number(2.0)), op.subtract(other, corner)
    boxes = op.multiply(op.concat([centre, size], 1), values(np.full((1, 1, places), 8.0)))
    return Written(name_all(model(op.concat([boxes, classes], 1), x)), pictures(shape=shape))


def distances_by_convolution(sides: ov.Node) -> ov.Node:
    """YOLOv8 and its successors."""
    shares = op.softmax(op.transpose(sides, np.array([0, 2, 1, 3])), 1)
    mean_bin = convolution(shares, np.arange(BINS, dtype=np.float32).reshape(1, BINS, 1, 1), "distribution")
    return op.squeeze(mean_bin, np.array([1]))


def distances_by_matmul(sides: ov.Node) -> ov.Node:
    """PP-YOLOE and NanoDet."""
    shares = op.softmax(op.transpose(sides, np.array([0, 1, 3, 2])), -1)
    return op.squeeze(matmul(shares, np.arange(BINS, dtype=np.float32).reshape(BINS, 1), "distribution"), np.array([-1]))


def box_refinement() -> Written:
    """DETR's decoders: each layer adds to boxes of shares, before a sigmoid, and its queries know them by an embedding."""
    x = parameter(SEQUENCE)
    boxes = op.sigmoid(linear(x, 4, "boxes"))
    stream = linear(x, WIDTH, "stream")
    for index in range(2):
        place = linear(op.relu(linear(boxes, WIDTH, f"place{index}")), WIDTH, f"embedding{index}")
        stream = op.relu(op.add(stream, linear(op.add(stream, place), WIDTH, f"layer{index}")))
        clipped = op.clamp(boxes, 1e-3, 1 - 1e-3)
        logits = op.log(op.divide(clipped, op.subtract(number(1.0), clipped)))
        boxes = op.sigmoid(op.add(linear(stream, 4, f"shift{index}"), logits))
    return Written(name_all(model(boxes, x)), sequences())


BLOCKS: dict[str, Callable[[], Written]] = {
    "LayerNorm": lambda: between_layers(layer_norm),
    "LayerNorm by squares": lambda: between_layers(layer_norm_by_squares),
    "LayerNorm by reciprocal": lambda: between_layers(layer_norm_by_reciprocal),
    "residual LayerNorm": lambda: residual_layer_norm(layer_norm),
    "residual LayerNorm by squares": lambda: residual_layer_norm(layer_norm_by_squares),
    "RMSNorm": lambda: between_layers(rms_norm),
    "residual RMSNorm": lambda: residual_layer_norm(rms_norm),
    "GELU by erf": lambda: between_layers(gelu_by_erf),
    "GELU by tanh": lambda: between_layers(gelu_by_tanh),
    "GELU by products": lambda: between_layers(gelu_by_products),
    "Swish": lambda: between_layers(swish),
    "softmax": lambda: between_layers(softmax_by_exp),
    "attention": plain_attention,
    "softmax by exp": lambda: plain_attention(softmax_by_exp),
    "rotary embedding": lambda: plain_attention(turn=rotary),
    "rotary embedding by place": rotary_attention,
    "attention mask": masked_attention,
    "squeeze-and-excitation": squeeze_and_excitation,
    "input normalisation": input_normalisation,
    "residual network": residual_network,
    "box refinement": box_refinement,
    "boxes by convolution": lambda: box_decoding(distances_by_convolution),
    "boxes by MatMul": lambda: box_decoding(distances_by_matmul),
}
