"""What returns to floating point together."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.configuration import schema
from stages.quantization.build import build
from stages.quantization.effect.blocks import blocks_of, multiplications
from stages.quantization.model.graph import read_graph
from stages.search.candidates import Candidate
from stages.search.reversion.reverting import reverted
from tests.quantization.quantizing import plan_of, quantized, same, statistics_of
from tests.quantization.small import constant, convolution, images, matmul, model, named, parameter, random


def layers_of(tested: ov.Model, restore: str = "activations_and_weights") -> list[set[str]]:
    return [set(block.layers) for block in blocks_of(read_graph(tested), plan_of(tested), restore)]


def chain() -> ov.Model:
    source = parameter()
    first = convolution(source, random(4, 3, 3, 3), "first", random(4), pads_begin=[1], pads_end=[1])
    return model(convolution(named(op.relu(first), "relu"), random(4, 4, 3, 3), "second", np.zeros(4)), source)


def test_each_layer_of_a_chain_is_a_block_with_its_weights_and_its_input() -> None:
    tested = chain()
    blocks = blocks_of(read_graph(tested), plan_of(tested), "activations_and_weights")
    assert [block.layers for block in blocks] == [("first",), ("second",)]
    assert [block.quantizers for block in blocks] == [
        ("first/fq_weights_1", "x/fq_output_0"),
        ("relu/fq_output_0", "second/fq_weights_1"),
    ]
    assert [block.name for block in blocks] == ["first", "second"]


def test_layers_that_read_one_quantized_tensor_return_together() -> None:
    source = parameter()
    first = named(op.relu(convolution(source, random(4, 3, 1, 1), "first")), "relu")
    left, right = (convolution(first, random(4, 4, 1, 1, seed=seed), name) for seed, name in ((1, "left"), (2, "right")))
    assert layers_of(model([left, right], source)) == [{"first"}, {"left", "right"}]


def test_operations_that_pass_data_on_are_looked_through() -> None:
    source = parameter()
    one = named(op.relu(convolution(source, random(4, 3, 1, 1), "one")), "relu_one")
    two = named(op.relu(convolution(source, random(4, 3, 1, 1, seed=1), "two")), "relu_two")
    joined = named(op.concat([one, two], 1), "joined")
    turned = named(op.transpose(joined, constant([0, 1, 3, 2], "order", np.int64)), "turned")
    last = convolution(turned, random(4, 8, 1, 1), "last")
    tested = model(last, source)
    assert layers_of(tested) == [{"one", "two"}, {"last"}]
    # The quantizers of the Concat's inputs serve `last` alone and go with it.
    block = blocks_of(read_graph(tested), plan_of(tested), "activations_and_weights")[1]
    assert len(block.quantizers) == len([q for q in plan_of(tested).quantizers if any(p.name == "last" for p in q.layers)])


def test_a_shared_input_links_an_addition_with_the_convolution_beside_it() -> None:
    source = parameter()
    first = named(op.relu(convolution(source, random(4, 3, 1, 1), "first")), "relu")
    second = convolution(first, random(4, 4, 1, 1, seed=1), "second", random(4))
    added = named(op.relu(named(op.add(second, first), "added")), "relu_added")
    last = convolution(added, random(4, 4, 1, 1, seed=2), "last")
    assert layers_of(model(last, source)) == [{"first"}, {"second", "added"}, {"last"}]


def test_weights_stay_quantized_where_only_activations_are_restored() -> None:
    tested = chain()
    graph, plan = read_graph(tested), plan_of(tested)
    blocks = blocks_of(graph, plan, "activations")
    assert [block.quantizers for block in blocks] == [("x/fq_output_0",), ("relu/fq_output_0",)]
    left = reverted(Candidate(plan), blocks).plan
    assert {quantizer.kind for quantizer in left.quantizers} == {"weights"}


def test_all_blocks_reverted_compute_what_fp32_does_biases_included() -> None:
    tested, samples = chain(), images(4)
    correction = schema.BiasCorrection(threshold=1000.0)
    base = Candidate(plan_of(tested), correction)
    blocks = blocks_of(read_graph(tested), base.plan, "activations_and_weights")
    result, solved = build(tested, statistics_of(tested, samples), reverted(base, blocks).plan, correction)
    assert solved.corrections == []
    same(result, tested, samples, tolerance=1e-6)


def test_biases_return_with_the_weights_and_those_found_with_inference_too() -> None:
    tested, samples = chain(), images(4)
    made = quantized(tested, samples, correction=schema.BiasCorrection(threshold=1000.0))
    base = Candidate(made.plan, schema.BiasCorrection(use_fast_bias=False), tuple(made.solved.corrections))
    assert [entry.name for entry in base.corrections or ()] == ["first", "second"]
    second = blocks_of(read_graph(tested), base.plan, "activations_and_weights")[1]
    assert [entry.name for entry in reverted(base, [second]).corrections or ()] == ["first"]
    everywhere = Candidate(made.plan, schema.BiasCorrection(use_fast_bias=False, apply_for_all_nodes=True), base.corrections)
    assert reverted(everywhere, [second]).corrections == base.corrections
    weights_stay = blocks_of(read_graph(tested), base.plan, "activations")[1]
    assert reverted(base, [weights_stay]).corrections == base.corrections


def test_a_reverted_block_says_why_its_inputs_are_float() -> None:
    tested = chain()
    blocks = blocks_of(read_graph(tested), plan_of(tested), "activations_and_weights")
    added = set(reverted(Candidate(plan_of(tested)), blocks[1:]).plan.floats) - set(plan_of(tested).floats)
    assert {(entry.name, entry.port) for entry in added} == {("second", 0), ("second", 1)}
    assert {entry.reason for entry in added} == {"reverted to keep the accuracy budget"}


def test_nothing_reverted_is_the_base_itself() -> None:
    base = Candidate(plan_of(chain()))
    assert reverted(base, []) is base


@pytest.mark.parametrize("groups", [1, 2])
def test_cost_counts_multiplications(groups: int) -> None:
    source = parameter((1, 4, 8, 8))
    weights = random(6, 4, 3, 3) if groups == 1 else random(2, 3, 2, 3, 3)
    graph = read_graph(model(convolution(source, weights, "conv", pads_begin=[1], pads_end=[1]), source))
    assert multiplications(graph.by_name["conv"]) == 6 * 64 * (4 // groups) * 9


def test_cost_of_matrices_and_of_element_wise_operations() -> None:
    source = parameter((5, 7))
    graph = read_graph(model(named(op.relu(matmul(source, random(7, 3), "product")), "relu"), source))
    assert multiplications(graph.by_name["product"]) == 5 * 7 * 3
    assert multiplications(graph.by_name["relu"]) == 15
