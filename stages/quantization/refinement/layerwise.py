"""Layer-wise tuning: bring each quantized layer's outputs closer to the floating-point ones (mean squared error).

Layers are independent of each other: each learns from sampled output positions, with the floating-point model's input
(or the quantized model's) and the floating-point model's output as its target. The rows of as many layers as fit into
`STORED_BYTES` are collected together, in one pass of inference over the samples used; then each of them is tuned.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

from stages.common.errors import UserError
from stages.configuration import schema
from stages.quantization.build import build
from stages.quantization.model.graph import Node, bias_add, read_graph
from stages.quantization.noise import aligned_model
from stages.quantization.placement.plan import Plan
from stages.quantization.refinement.layer_samples import Rows, joined, positions, rows_at
from stages.quantization.refinement.layer_tuning import Grid, Settings, tune
from stages.quantization.refinement.tunable_layers import TunableLayer, by_level, by_memory, tunable_layer
from stages.quantization.solution.biases import Correction
from stages.quantization.solution.ranges import Range
from stages.quantization.solution.solve import Solved, correctable_layers
from stages.quantization.solution.tuned import Tuned, TunedLayer, alignment_of
from stages.quantization.statistics.masks import BEYOND
from stages.quantization.statistics.store import Statistics
from stages.runtime import engine
from stages.runtime.datasets import Sample

LAYER_COST = 10  # of tuning a layer, in inferences, for the progress


@dataclass(frozen=True)
class LayerTuning:
    """What became of one layer: its mean squared error on held-out rows before and after, or why it was left alone."""

    name: str
    type: str
    rows: int | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Record:
    """What layer-wise tuning did.

    Attributes:
        samples: Number of calibration samples that it learned from.
        passes: How often these were run.
        layers: In topological order.
    """

    samples: int
    passes: int
    layers: list[LayerTuning]

    def to_json(self) -> dict[str, Any]:
        """Per layer the loss before and after, or why it was left alone: a part of corrections.json."""
        tuned: list[dict[str, Any]] = []
        left: list[dict[str, Any]] = []
        for entry in self.layers:
            values = {key: value for key, value in asdict(entry).items() if value is not None}
            (left if entry.reason else tuned).append(values)
        return {"samples": self.samples, "passes": self.passes, "tuned": tuned, "left": left}


def tune_layers(
    model: ov.Model,
    statistics: Statistics,
    plan: Plan,
    config: schema.LayerwiseTuning,
    samples: Sequence[Sample],
    *,
    bias_correction: schema.BiasCorrection | None = None,
    pot_compatible: bool = False,
    corrections: Sequence[Correction] = (),
    settings: schema.Engine | None = None,
    advance: Callable[[int], object] = lambda percent: None,
) -> tuple[Tuned, Record]:
    """Tune what `build` makes of the same arguments: its `tuned`, and what came of every layer.

    Args:
        config: with a seed.
        samples: all calibration samples, bound to the model; those of `config.calibration_indices_pool` are run.
        settings: how to run the models, always in f32.
        advance: called with the percents of the work that are done.

    Raises:
        UserError: the model computes values that are not finite.
    """
    graph = read_graph(model)
    chosen = _Chosen(samples, config)

    def quantized(tuned: Sequence[TunedLayer]) -> tuple[ov.Model, Solved]:
        return build(model, statistics, plan, bias_correction, pot_compatible, corrections, Tuned(tuple(tuned)))

    _, solved = quantized([])
    results: dict[str, LayerTuning] = {}
    subjects = []
    for node, quantizer in correctable_layers(graph, plan, all_nodes=False):
        subject = tunable_layer(graph, plan, solved, node, quantizer, config, len(chosen))
        results[node.name] = LayerTuning(node.name, node.type, reason=subject if isinstance(subject, str) else None)
        if isinstance(subject, TunableLayer):
            subjects.append(subject)
    levels = [subjects] if config.use_only_fp_inputs else by_level(graph, subjects)
    groups = [group for level in levels for group in by_memory(level, statistics, len(chosen))]
    worked = _Percent(len(groups) * len(chosen) + len(subjects) * LAYER_COST, advance)
    aligned = aligned_model(model, statistics, plan)
    tuned: list[TunedLayer] = []
    for group in groups:
        sources = None if config.use_only_fp_inputs else quantized(tuned)[0]
        rows = _collected(group, aligned, sources, chosen, settings or schema.Engine(), worked)
        for subject, own in zip(group, rows, strict=True):
            found, results[subject.name] = _tuned(subject, own, plan, config)
            tuned += found
            worked(LAYER_COST)
    return Tuned(tuple(tuned)), Record(len(chosen), len(groups), list(results.values()))


class _Chosen:
    """The calibration samples to learn from: some of them, drawn by seed, in their order. Each is read when it is asked for."""

    def __init__(self, samples: Sequence[Sample], config: schema.LayerwiseTuning) -> None:
        order = np.random.default_rng(_seed(config)).permutation(len(samples))
        self._samples = samples
        self._indices = sorted(int(index) for index in order[: config.calibration_indices_pool])
        self.seed = _seed(config)

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Sample]:
        return (self._samples[index] for index in self._indices)


class _Percent:
    """Turns units of work into percents."""

    def __init__(self, total: int, advance: Callable[[int], object]) -> None:
        self._total, self._done, self._advance = total, 0, advance

    def __call__(self, count: int) -> None:
        before = 100 * self._done // self._total
        self._done += count
        self._advance(100 * self._done // self._total - before)


def _seed(config: schema.LayerwiseTuning) -> int:
    assert config.seed is not None, "the stage config fills it in"
    return config.seed


# --------------------------------------------------------------------------------------------------- what is learned from


def _collected(
    group: Sequence[TunableLayer],
    aligned: ov.Model,
    quantized: ov.Model | None,
    samples: _Chosen,
    settings: schema.Engine,
    worked: Callable[[int], None],
) -> list[Rows | None]:
    """The rows of some layers, in one pass; None where there are none.

    quantized: The model whose inputs they get, if not those of the aligned one.
    """
    nodes = [subject.layout.node for subject in group]
    models = [_outputs_of(aligned, nodes, inputs=quantized is None, outputs=True)]
    if quantized is not None:
        models.append(_outputs_of(quantized, nodes, inputs=True, outputs=False))
    runs = [engine.infer(engine.compile(model, settings, "f32"), samples) for model in models]
    parts: list[list[Rows]] = [[] for _ in group]
    for sample, values in enumerate(zip(*runs, strict=True)):
        sources, outputs = values[-1][: len(group)], values[0][-len(group) :]
        for subject, part, source, output in zip(group, parts, sources, outputs, strict=True):
            if not output.size:
                continue
            rows = _rows(subject, source, output, sample, samples.seed)
            if not (np.isfinite(rows.inputs).all() and np.isfinite(rows.outputs).all()):
                raise UserError(f"the model computes values that are not finite at {subject.name} for calibration sample {sample}")
            part.append(rows.take(rows.within(BEYOND)))
        worked(1)
    return [joined(part) if part else None for part in parts]


def _rows(subject: TunableLayer, source: NDArray[np.floating], output: NDArray[np.floating], sample: int, seed: int) -> Rows:
    """Rows of one sample, drawn by seed, layer and sample: the same ones whatever layers are collected together."""
    count = positions(subject.layout, output)
    generator = np.random.default_rng([seed, zlib.crc32(subject.name.encode()), sample])
    places = generator.choice(count, min(count, subject.rows_per_sample), replace=False, shuffle=False)
    return rows_at(subject.layout, source, output, np.sort(places), sample)


def _outputs_of(model: ov.Model, nodes: Sequence[Node], *, inputs: bool, outputs: bool) -> ov.Model:
    """A copy of a model whose outputs are the inputs of layers before their own quantizer, then their biased outputs, in f32."""
    clone = model.clone()
    graph = read_graph(clone)
    found: list[ov.Output] = []
    if inputs:
        found += [_before_quantizer(graph.by_name[node.name]) for node in nodes]
    if outputs:
        found += [(bias_add(graph.by_name[node.name]) or graph.by_name[node.name]).operation.output(0) for node in nodes]
    for result in list(clone.get_results()):
        clone.remove_result(result)
    clone.add_results([op.result(_in_f32(output)) for output in found])
    clone.validate_nodes_and_infer_types()
    return clone


def _before_quantizer(node: Node) -> ov.Output:
    """The data input of a layer, before the FakeQuantize that is right before it."""
    port = node.inputs[0]
    while port.node.type == "FakeQuantize" or (port.node.type == "Convert" and port.node.inputs[0].node.type == "FakeQuantize"):
        port = port.node.inputs[0]
    return port.node.operation.output(port.index)


def _in_f32(output: ov.Output) -> ov.Output:
    return output if output.get_element_type() == ov.Type.f32 else op.convert(output, "f32").output(0)


# ------------------------------------------------------------------------------------------------------------- tuning


def _tuned(subject: TunableLayer, rows: Rows | None, plan: Plan, config: schema.LayerwiseTuning) -> tuple[list[TunedLayer], LayerTuning]:
    """Tune one layer; nothing, and the reason, where it gets no better."""
    name, kind = subject.name, subject.layout.node.type
    if rows is None or len(rows) < 2:
        few = len(rows) if rows is not None else 0
        return [], LayerTuning(name, kind, few, reason=f"the samples have {'only one row' if few else 'no row'} of it")
    generator = np.random.default_rng([_seed(config), zlib.crc32(name.encode())])
    rates = config.learning_rate
    settings = Settings(
        config.optimizer,
        max(1, config.num_samples_for_tuning // config.batch_size),
        config.batch_size,
        rates.weights,
        rates.bias,
        rates.weight_fq,
        rates.input_fq,
        config.weight_decay,
    )
    outcome = tune(subject.layer, rows, settings, generator)
    if outcome.layer is None:
        reason = "it has no error" if outcome.loss_before == 0.0 else "tuning made it no better on held-out samples"
        return [], LayerTuning(name, kind, len(rows), outcome.loss_before, reason=reason)
    layer, layout = outcome.layer, subject.layout
    canonical = layer.weights.reshape(layout.value().shape)
    found = TunedLayer(
        name,
        subject.quantizer,
        layout.restored(canonical),
        _range(layer.weight_grid, 0.5 if layer.doubled else 1.0),
        layer.bias.reshape(-1).astype(np.float64),
        subject.own,
        _range(layer.input_grid) if subject.own is not None and layer.input_grid is not None else None,
        alignment_of(name, plan),
    )
    return [found], LayerTuning(name, kind, len(rows), outcome.loss_before, outcome.loss_after)


def _range(grid: Grid, factor: float = 1.0) -> Range:
    """A grid's borders times a factor as a range: scalars, or [C]."""
    low, high = ((border * np.float32(factor)).reshape(-1).astype(np.float64) for border in (grid.low, grid.high))
    return Range(low, high) if low.size > 1 else Range(low.reshape(()), high.reshape(()))
