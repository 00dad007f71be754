"""The per-layer table: how each input of each layer is quantized, how much noise that makes, and what the layer costs.

One row per layer and input port. Columns, the same for every model; MLflow compares runs by the first and shows the second:

    layer           name and input port, `conv1:0`. Where several quantizers serve one input, through a Concat, the quantized
                    tensor is named too: `conv1:0 < relu2`
    effect_on       relative error of the model's outputs with this input's block alone quantized (see effect/measure.py)
    sqnr_db         signal-to-quantization-noise ratio of the quantized tensor in dB (see noise.py)
    kind            weights, activations, or float
    bits, mode, granularity, levels
    estimator       how the range was estimated: lower border / upper border
    choice          what preset auto chose of these, and why
    block           the first of the layers that are quantized together, where these are several
    effect_off      by how much the relative error of the outputs falls where this block alone stays float
    agreement_on    share of predictions that are FP32's with this block alone quantized, as the primary metric counts them
    agreement_off   the same with all but this block quantized
    effect_missing  why the effect was not measured
    low, high       borders of the range, the widest over channels
    run_time_share  share of the INT8 model's run time, of the layer with all that is fused into it; counted once, in the
                    row of its first port; null where the runtime reports no time of its own for the layer
    runs_as         the runtime's kernel, or `in NAME` where the layer is fused into another one
    bias            for weights: corrected, or why the layer's bias was left alone
    alignment       for weights: the layer before, if channels were aligned with it or why they were not
    tuned_loss      for weights: what layer-wise tuning left of the layer's mean squared error, as a share; null: not tuned
    type            operation type
    port            input port; null where the whole operation stays float
    float_reason    why the input, or the whole operation, stays float
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from stages.measurement.latency import NodeTime
from stages.quantization.statistics.estimators import SHARE_TYPES

COLUMNS = (
    "layer",
    "effect_on",
    "sqnr_db",
    "kind",
    "bits",
    "mode",
    "granularity",
    "levels",
    "estimator",
    "choice",
    "block",
    "effect_off",
    "agreement_on",
    "agreement_off",
    "effect_missing",
    "low",
    "high",
    "run_time_share",
    "runs_as",
    "bias",
    "alignment",
    "tuned_loss",
    "type",
    "port",
    "float_reason",
)

DEQUANTIZATION = "/DequantizationMultiply"  # what OpenVINO adds to the name of an operation that it runs on integers

Row = dict[str, Any]


def layer_table(
    quantizers: Mapping[str, Any],
    corrections: Mapping[str, Any],
    noise: Mapping[str, float | None],
    times: Iterable[NodeTime],
    order: Iterable[str],
    effects: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Row]:
    """Joins what is known of every layer.

    Args:
        quantizers: Content of quantizers.json.
        corrections: Content of corrections.json.
        noise: SQNR in dB by quantizer name; may lack any of them.
        times: Executed nodes of the INT8 model; empty where the runtime tells nothing.
        order: Names of all operations in the order in which they are computed.
        effects: The columns from `block` to `effect_missing` by name of a quantized layer; may lack any of them.

    Returns:
        Rows with `COLUMNS` as keys, by layer in the given order and by port.
    """
    biases = {entry["name"]: "corrected" for entry in corrections["corrected"]}
    biases |= {entry["name"]: f"left: {entry['reason']}" for entry in corrections["left"]}
    alignments = {second: f"aligned with {first}" for first, second in quantizers["aligned"]}
    alignments |= {pair["second"]: f"not with {pair['first']}: {pair['reason']}" for pair in quantizers["not_aligned"]}
    tuning = corrections.get("layerwise_tuning", {}).get("tuned", [])
    tuned = {entry["name"]: round(entry["loss_after"] / entry["loss_before"], 4) for entry in tuning}
    served = Counter((layer["name"], layer["port"]) for entry in quantizers["quantizers"] for layer in entry["layers"])
    rows = []
    for entry in quantizers["quantizers"]:
        for layer in entry["layers"]:
            row = _row(layer["name"], layer["type"], layer["port"], entry["kind"])
            row |= {key: entry[key] for key in ("bits", "mode", "granularity", "levels")}
            row |= {
                "estimator": _estimator(entry),
                "choice": entry.get("choice"),
                "low": min(entry["input_low"]),
                "high": max(entry["input_high"]),
            }
            if served[layer["name"], layer["port"]] > 1:
                row["layer"] += f" < {entry['source']['name']}"
            row |= (effects or {}).get(layer["name"], {})
            row["sqnr_db"] = noise.get(entry["name"])
            if entry["kind"] == "weights":
                row["bias"], row["alignment"] = biases.get(layer["name"]), alignments.get(layer["name"])
                row["tuned_loss"] = tuned.get(layer["name"])
            rows.append(row)
    rows += [
        _row(entry["name"], entry["type"], entry["port"], "float") | {"float_reason": entry["reason"]} for entry in quantizers["float"]
    ]
    places = {name: place for place, name in enumerate(order)}
    rows.sort(key=lambda row: (places.get(row["name"], len(places)), row["port"] or 0))
    costs = _costs(list(times), {row["name"] for row in rows})
    charged = set()
    for row in rows:
        name = row.pop("name")
        if name in costs and name not in charged:
            row["run_time_share"], row["runs_as"] = costs[name]
            charged.add(name)
    return rows


def _row(name: str, kind: str, port: int | None, group: str) -> Row:
    layer = name if port is None else f"{name}:{port}"
    return {"name": name, **dict.fromkeys(COLUMNS), "layer": layer, "type": kind, "port": port, "kind": group}


def _estimator(quantizer: Mapping[str, Any]) -> str:
    """The borders in words, `mean of min / mean of quantile 0.01`; a symmetric range follows from the upper one alone."""

    def border(entry: Mapping[str, Any]) -> str:
        probability = f" {entry['outlier_prob']:g}" if entry.get("outlier_prob") is not None and entry["type"] in SHARE_TYPES else ""
        clipping = f" <= {entry['clipping_value']:g}" if entry.get("clipping_value") is not None else ""
        return (f"{entry['aggregator']} of " if entry.get("aggregator") else "") + entry["type"] + probability + clipping

    sides = ("max",) if quantizer["mode"] == "symmetric" else ("min", "max")
    return " / ".join(dict.fromkeys(border(quantizer["estimator"][side]) for side in sides))


def _costs(times: list[NodeTime], layers: set[str]) -> dict[str, tuple[float | None, str]]:
    """By name of a layer: its share of the run time and its kernel, or the layer that it is fused into.

    The runtime often names a node first after what it has put in itself, such as a quantized MatMul after the Multiply that
    brings its result back to floating point: the first of `layers` is the one that pays.
    """
    total = sum(node.microseconds for node in times)
    main: dict[str, tuple[float, str]] = {}
    fused: dict[str, str] = {}
    for node in times:
        names = [name for name in dict.fromkeys(name.removesuffix(DEQUANTIZATION) for name in node.layers) if name in layers]
        for name in names[:1]:
            share = main.get(name, (0.0, ""))[0] + (node.microseconds / total if total else 0.0)
            main[name] = share, node.implementation
        for name in names[1:]:
            fused.setdefault(name, f"in {names[0]}")
    costs: dict[str, tuple[float | None, str]] = {name: (None, place) for name, place in fused.items()}
    return costs | {name: (round(share, 4), kernel) for name, (share, kernel) in main.items()}
