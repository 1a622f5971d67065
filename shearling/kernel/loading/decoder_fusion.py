"""Whole decoder layers, as many as have one shape, as one operator: where packed layers follow each other with nothing
but plain attention between them, attention, rotary embedding and cache go into the layers when a model is loaded.

A token of a small model spends a third of its time between the packed products: nodes of dynamic shape, each of which
costs microseconds, and attention itself. The file is not changed. It stays one that continuous batching can rewrite,
which looks for OpenVINO's own attention.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .attention_match import PlainAttention, angle_sets, find_attentions, find_window
from .graph_match import Array, NoMatch
from .ir_text import FORMAT_VERSION, IrText, MalformedText, Source

STOCK_ATTENTION = {"ATTENTION_BACKEND", "scheduler_config", "draft_model", "prompt_lookup"}
"""Properties with which a packed decoder keeps OpenVINO's attention: they ask for that of GenAI's continuous batching.
"""
CACHE_PRECISION = "KV_CACHE_PRECISION"
CACHE_TYPES = {"f16": "f16", "u8": "i8", "f32": "f32", "bf16": "bf16"}
"""Precisions of the cache that attention in the layers knows, in OpenVINO's names and in ours."""
SCALE_COLUMNS = 32


def fuse_decoder(text: IrText, model: Any, config: Mapping[str, Any], *, cache: str = "f16") -> str | None:
    """Put every attention of a packed decoder into the layer behind it.

    Args:
        text: of the IR; changed where there is no obstacle.
        model: the `openvino.Model` that was read from this text, with a cache in variables.
        config: of the model, as in config.json: what it says of caps on scores, which a graph leaves out.
        cache: in what it keeps keys and values, one of `CACHE_TYPES`.

    Returns:
        Why nothing was changed; None where it was.
    """
    try:
        attentions = find_attentions(model, config)
        windows = {item.mask: find_window(item.mask) for item in attentions}
        _rewrite(
            text, attentions, [windows[item.mask] for item in attentions], _mask_parameter(model), CACHE_TYPES[cache]
        )
    except NoMatch as reason:
        return str(reason)
    except MalformedText as fault:
        return f"its text cannot be changed: {fault}"
    return None


def kept_cache(text: IrText, layer: int) -> str:
    """The precision of the cache of a fused layer, in OpenVINO's name."""
    kept = text.data(layer).get("cache", "f16")
    return next((name for name, own in CACHE_TYPES.items() if own == kept), kept)


def _mask_parameter(model: Any) -> Any:
    for parameter in model.get_parameters():
        if "attention_mask" in parameter.output(0).get_names():
            return parameter
    raise NoMatch("the model is given no mask")


def _rewrite(text: IrText, attentions: Sequence[PlainAttention], windows: Sequence[int], mask: Any, cache: str) -> None:
    # What can fail comes first, so that a text is changed as a whole or not at all.
    first, sets = attentions[0], angle_sets(attentions)
    tables = [table for pair in sets for table in pair]
    shared = [text.source(output) for output in (*tables, mask.output(0), first.beam)]
    # What goes into the first layer is joined as the others leave it, so that it is like them.
    order = _order(attentions[1].inputs) if len(attentions) > 1 else [0, 1, 2]
    queries = [text.source(first.inputs[part]) for part in order]
    old = [number for number in text.layers_of(("Assign",)) if _is_cache(text, number, attentions)]
    orders = [order, *(_order(item.inputs) for item in attentions[1:])]
    angles = [-1 if item.rotary is None else sets.index(item.rotary.angles) for item in attentions]
    rotary = next(item.rotary for item in attentions if item.rotary is not None)
    kept = {"rotary_size": rotary.size, "interleaved": rotary.interleaved, "cache": cache}
    layers = [_layer(text, *layer, kept) for layer in zip(attentions, orders, windows, angles, strict=True)]
    joined = text.add("Concat", queries, {"axis": -1}, version="opset1")[0]
    (step,) = text.add("SparseStep", shared, {"format_version": FORMAT_VERSION})
    residual = layers[0].residual
    for place, (_, alike) in enumerate(itertools.groupby(layers, key=lambda layer: layer.data)):
        run = list(alike)
        last = run[-1]
        read, variable = _add_cache(text, run, place)
        inputs = [joined, residual, step, read, *(layer.weights for layer in run)]
        vectors = [vector for layer in run for vector in layer.vectors]
        if vectors:
            inputs.append(text.numbers(np.concatenate(vectors)))
        outputs = 2 if len(last.ends) == 1 else 3
        data = {**last.data, "layers": len(run)}
        data |= {name: value for name, value in _by_layer(run).items() if any(value)}
        fused = text.add("SparseDecoder", inputs, data, outputs=outputs, name=text.name(last.number))
        text.add("Assign", [fused[1]], variable, version="opset6", outputs=0)
        text.replace(last.ends[0], fused[0])
        residual, joined = fused[0], fused[-1]
    text.remove(old)


@dataclass(frozen=True)
class _Layer:
    """One packed layer of the text, with the attention that goes into it.

    Attributes:
        data: attributes of a `SparseDecoder` of this layer, but for those of each layer.
        window, angles: those.
        vectors: that are added to queries, keys and values, and gammas of the norms of heads.
        planes: heads of keys and values in its cache.
        slot: bytes of a position in one of them.
        ends: outputs of the layer; the first is the residual of the next.
    """

    number: int
    data: dict[str, object]
    residual: Source
    weights: Source
    vectors: tuple[Array, ...]
    planes: int
    slot: int
    ends: list[Source]
    window: int
    angles: int


def _by_layer(run: Sequence[_Layer]) -> dict[str, list[int]]:
    return {"windows": [layer.window for layer in run], "angles": [layer.angles for layer in run]}


def _layer(
    text: IrText, item: PlainAttention, order: list[int], window: int, angles: int, kept: Mapping[str, object]
) -> _Layer:
    number = text.source(item.layer.output(0)).layer
    _, residual, weights = text.inputs(number)
    data = {
        **text.data(number),
        "heads": item.heads,
        "kv_heads": item.kv_heads,
        "head_size": item.head_size,
        **kept,
        "scale": item.scale,
        "order": order,
        "qkv_bias": bool(item.biases),
        "head_norm_epsilon": item.epsilon,
    }
    vectors = (*(item.biases[part] for part in order if item.biases), *item.gammas)
    return _Layer(
        number,
        data,
        residual,
        weights,
        vectors,
        planes=2 * item.kv_heads,
        slot=_slot_bytes(str(kept["cache"]), item.head_size),
        ends=text.outputs(number),
        window=window,
        angles=angles,
    )


def _slot_bytes(cache: str, size: int) -> int:
    """Of a position of a head, as in cpp/cache_layout.hpp."""
    numbers = {"f16": 2, "i8": 1, "f32": 4, "bf16": 2}[cache] * size
    return numbers + (2 * -(-size // SCALE_COLUMNS) if cache == "i8" else 0)


def _is_cache(text: IrText, assign: int, attentions: Sequence[PlainAttention]) -> bool:
    return any(text.data(assign).get("variable_id") in item.variables for item in attentions)


def _add_cache(text: IrText, layers: Sequence[_Layer], place: int) -> tuple[Source, dict[str, object]]:
    """What reads a cache that is empty at first, and the variable."""
    planes, slot = len(layers) * layers[0].planes, layers[0].slot
    sizes = text.numbers(np.array([0, planes, 0, slot], np.int64))
    empty = text.add("Broadcast", [text.numbers(np.zeros(1, np.uint8)), sizes], {"mode": "numpy"}, version="opset3")
    variable: dict[str, object] = {
        "variable_id": f"shearling_cache.{place}",
        "variable_type": "u8",
        "variable_shape": f"?,{planes},?,{slot}",
    }
    return text.add("ReadValue", empty, variable, version="opset6")[0], variable


def _order(inputs: tuple[Any, Any, Any]) -> list[int]:
    """In which order queries (0), keys (1) and values (2) leave the layer before."""
    return sorted(range(len(inputs)), key=lambda part: int(inputs[part].get_index()))
