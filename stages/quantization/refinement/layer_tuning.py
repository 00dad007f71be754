"""The tuning of one layer by gradients: its weights, its bias, and the scales of its quantizers. Numbers only, no model.

The layer computes y = FQ(x) * FQ(w) + b, and the loss is the mean squared difference to the floating-point outputs at
sampled output positions, as a share of what it was before tuning. Rounding has no useful gradient: as usual it is taken
for the identity (the straight-through estimator). With z zero exactly on a level and both borders moved by one factor s,

    x' = s * step * round(x / (s * step)),   dx'/dx = 1 inside the range and 0 outside,
    dx'/d(log s) = x' - x inside (what is left of a full step) and x' outside (the border moves with s).

Parameters are changes in units of their own, so that one learning rate fits all layers and all bit widths: weights in
quantization steps, scales in logarithms, biases in the layer's root mean squared error before tuning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.quantization.refinement.layer_samples import Rows, held_out
from stages.quantization.solution.ranges import Range, fake_quantize

Array = NDArray[np.float32]

CHECKS = 10  # how often the held-out rows are asked whether the parameters are the best so far
MARGIN = 1e-3  # a layer is changed only where this share of its loss goes
ADAM_DECAY, ADAM_DECAY_SQUARES, ADAM_SMALLEST = 0.9, 0.999, 1e-8  # of Adam's running means; arXiv:1412.6980


@dataclass(frozen=True)
class Settings:
    """How layers are tuned; learning rates are in the units of the parameters (see above).

    A rate of 0 keeps the parameters of that kind.
    """

    optimizer: str = "Adam"
    steps: int = 200
    batch_size: int = 256
    weights: float = 0.0
    bias: float = 0.0
    weight_scale: float = 0.0
    input_scale: float = 0.0
    weight_decay: float = 0.0


class Grid(NamedTuple):
    """The values that a FakeQuantize leaves: `levels` of them between two borders, which broadcast to what it quantizes."""

    low: Array
    high: Array
    levels: int

    def scaled(self, factor: Array) -> Grid:
        """Both borders times a factor, so that zero stays on its level."""
        return Grid(self.low * factor, self.high * factor, self.levels)

    def __call__(self, values: Array) -> Array:
        """The nearest values on the grid."""
        return fake_quantize(values, Range(self.low, self.high), self.levels)  # type: ignore[arg-type]

    def inside(self, values: Array) -> NDArray[np.bool_]:
        """Where values are not clipped."""
        return (values >= self.low) & (values <= self.high)

    @property
    def step(self) -> Array:
        """The distance of neighbours on the grid."""
        return (self.high - self.low) / np.float32(self.levels - 1)


@dataclass(frozen=True)
class Layer:
    """A layer as it is before tuning, with G groups of I/G input and O/G output channels and T taps.

    Attributes:
        weights: [G, O/G, K] with K = I/G * T.
        bias: [G, 1, O/G].
        weight_grid: borders [G, O/G, 1], or [1, 1, 1] for one range.
        input_grid: borders [G, 1, I/G, 1], or [1, 1, 1, 1]; None: the input is not quantized.
        tune_input: whether the scale of input_grid may change.
        doubled: the saturation fix: only the inner half of weight_grid may be used, and its scale stays.
    """

    weights: Array
    bias: Array
    weight_grid: Grid
    input_grid: Grid | None = None
    tune_input: bool = True
    doubled: bool = False


@dataclass(frozen=True)
class Changes:
    """What tuning changes, in its units; all zero is the layer as it was."""

    weights: Array
    bias: Array
    weight_scale: Array
    input_scale: Array

    @classmethod
    def none(cls, layer: Layer) -> Changes:
        """No change."""
        grids = (layer.weight_grid.low, layer.input_grid.low if layer.input_grid else np.zeros((1, 1, 1, 1)))
        return cls(*(np.zeros(np.shape(array), np.float32) for array in (layer.weights, layer.bias, *grids)))


@dataclass(frozen=True)
class Outcome:
    """What tuning a layer came to.

    Attributes:
        loss_before: Mean squared error on the held-out rows before.
        loss_after: The same of the best parameters found.
        layer: The layer with those parameters; None where they are no better.
    """

    loss_before: float
    loss_after: float
    layer: Layer | None


def tune(layer: Layer, rows: Rows, settings: Settings, generator: np.random.Generator) -> Outcome:
    """Tune a layer on four fifths of the rows, and keep the parameters that are best on the others.

    Args:
        rows: at least two.
    """
    aside = held_out(rows)
    learned, judged = rows.take(~aside), rows.take(aside)
    before = best = mean_squared_error(layer, judged)
    start = mean_squared_error(layer, learned)
    if start == 0.0 or before == 0.0:
        return Outcome(before, before, None)
    problem, found = Problem(layer, start), layer
    changes, optimizer = Changes.none(layer), _Optimizer(settings)
    every = max(1, settings.steps // CHECKS)
    for step, chosen in enumerate(_batches(len(learned), settings, generator), start=1):
        _, gradients = problem.gradients(changes, learned.take(chosen))
        changes = problem.allowed(optimizer.step(changes, gradients, rate=1.0 - (step - 1) / settings.steps))
        if step % every == 0 or step == settings.steps:
            candidate = problem.changed(changes)
            loss = mean_squared_error(candidate, judged)
            if loss < best:
                best, found = loss, candidate
    if not best < before * (1.0 - MARGIN):
        return Outcome(before, best, None)
    return Outcome(before, best, found)


def mean_squared_error(layer: Layer, rows: Rows) -> float:
    """Of the layer's outputs, over all rows and channels."""
    difference = _outputs(_inputs(layer, rows), layer.weight_grid(layer.weights), layer.bias) - rows.outputs
    return float(np.mean(np.square(difference), dtype=np.float64))


@dataclass(frozen=True)
class Problem:
    """A layer, what its parameters mean, and their gradients.

    Attributes:
        start: The loss before tuning, on the rows to learn from.
    """

    layer: Layer
    start: float

    def changed(self, changes: Changes) -> Layer:
        """The layer with changed parameters."""
        layer = self.layer
        return Layer(
            layer.weights + changes.weights * layer.weight_grid.step,
            layer.bias + changes.bias * self._bias_unit(),
            layer.weight_grid.scaled(np.exp(changes.weight_scale)),
            layer.input_grid.scaled(np.exp(changes.input_scale)) if layer.input_grid else None,
            layer.tune_input,
            layer.doubled,
        )

    def allowed(self, changes: Changes) -> Changes:
        """The nearest changes that the layer's quantizers allow."""
        layer = self.layer
        if not layer.doubled:
            return changes
        # Half of the borders of the doubled grid: the range itself.
        low, high = (np.float32(0.5) * border for border in (layer.weight_grid.low, layer.weight_grid.high))
        step = layer.weight_grid.step
        inner = np.clip(changes.weights, (low - layer.weights) / step, (high - layer.weights) / step)
        return Changes(inner, changes.bias, np.zeros_like(changes.weight_scale), changes.input_scale)

    def gradients(self, changes: Changes, rows: Rows) -> tuple[float, Changes]:
        """The loss as a share of the one at the start, and its gradients."""
        layer = self.changed(changes)
        quantized_weights = layer.weight_grid(layer.weights)
        quantized = _inputs(layer, rows)
        difference = _outputs(quantized, quantized_weights, layer.bias) - rows.outputs
        loss = float(np.mean(np.square(difference))) / self.start
        of_outputs = difference * np.float32(2.0 / (difference.size * self.start))
        of_weights = _product(of_outputs, quantized)
        inside = layer.weight_grid.inside(layer.weights)
        of_input_scale = np.zeros_like(changes.input_scale)
        if layer.input_grid is not None and layer.tune_input:
            left = quantized - rows.inputs * layer.input_grid.inside(rows.inputs)
            # The gradients of the inputs times `left`, summed over the rows first.
            by_weight = (_product(of_outputs, left) * quantized_weights).sum(axis=1)
            of_input_scale = _summed(by_weight.reshape(layer.weights.shape[0], 1, *left.shape[2:]), changes.input_scale.shape)
        return loss, Changes(
            weights=of_weights * inside * self.layer.weight_grid.step,
            bias=of_outputs.sum(axis=1, keepdims=True) * self._bias_unit(),
            weight_scale=_summed(of_weights * (quantized_weights - layer.weights * inside), changes.weight_scale.shape),
            input_scale=of_input_scale,
        )

    def _bias_unit(self) -> np.float32:
        return np.float32(np.sqrt(self.start))


def _inputs(layer: Layer, rows: Rows) -> Array:
    return rows.inputs if layer.input_grid is None else layer.input_grid(rows.inputs)


def _outputs(inputs: Array, weights: Array, bias: Array) -> Array:
    """[G, N, O/G] from [G, N, I/G, T]."""
    return inputs.reshape(*inputs.shape[:2], -1) @ weights.swapaxes(1, 2) + bias


def _product(outputs: Array, inputs: Array) -> Array:
    """[G, O/G, K]: the sum over the rows of outputs [G, N, O/G] times inputs [G, N, I/G, T]."""
    return outputs.swapaxes(1, 2) @ inputs.reshape(*inputs.shape[:2], -1)


def _summed(values: Array, shape: tuple[int, ...]) -> Array:
    """The sum over the axes along which `shape` has one entry."""
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1)
    return values.sum(axis=axes, keepdims=True).reshape(shape)


def _batches(rows: int, settings: Settings, generator: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """The rows of each step: all of them in a random order, again and again."""
    size, waiting = min(settings.batch_size, rows), np.zeros(0, np.int64)
    for _ in range(settings.steps):
        while len(waiting) < size:
            waiting = np.concatenate([waiting, generator.permutation(rows)])
        yield waiting[:size]
        waiting = waiting[size:]


class _Optimizer:
    """Adam, or plain gradient descent (SGD)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._steps = 0
        self._means: dict[str, NDArray[Any]] = {}
        self._squares: dict[str, NDArray[Any]] = {}

    def step(self, changes: Changes, gradients: Changes, rate: float) -> Changes:
        """The next changes. rate: factor on all learning rates."""
        self._steps += 1
        return Changes(**{name: self._moved(name, changes, gradients, rate) for name in vars(changes)})

    def _moved(self, name: str, changes: Changes, gradients: Changes, rate: float) -> Array:
        value: Array = getattr(changes, name)
        learning_rate = rate * getattr(self._settings, name)
        if learning_rate == 0.0:
            return value
        gradient: Array = getattr(gradients, name) + np.float32(self._settings.weight_decay) * value
        if self._settings.optimizer == "SGD":
            return value - np.float32(learning_rate) * gradient
        mean = self._means.get(name, np.zeros_like(value)) * np.float32(ADAM_DECAY) + np.float32(1 - ADAM_DECAY) * gradient
        squares: NDArray[Any] = self._squares.get(name, np.zeros_like(value)) * np.float32(ADAM_DECAY_SQUARES)
        squares = squares + np.float32(1 - ADAM_DECAY_SQUARES) * np.square(gradient)
        self._means[name], self._squares[name] = mean, squares
        unbiased = mean / np.float32(1 - ADAM_DECAY**self._steps)
        spread = np.sqrt(squares / np.float32(1 - ADAM_DECAY_SQUARES**self._steps)) + np.float32(ADAM_SMALLEST)
        moved: NDArray[Any] = value - np.float32(learning_rate) * unbiased / spread
        return moved
