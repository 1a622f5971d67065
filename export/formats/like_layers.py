"""A graph in which the first layers are traced and the others are copies of them.

An exporter takes a second or two for every layer of a transformer, and learns nothing new from the third on: layers of
one kind differ in their weights alone. So a model is cut to the first layers, of which two are of every kind that
follows; where the graphs of the two are the same, node by node, that of the second is written again for every other
layer of the kind, with its weights, its cache and what the layer before it returned. Whatever is not as expected is
traced whole.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from export.formats.copied_layers import TracePlan, UnexpectedGraph, continue_layers
from export.formats.layer_windows import layers_alone
from shearling.errors import ModelUnsupported
from shearling.model.layers import find_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOT_OF_A_KIND = {"training", "_parameters", "_buffers", "_modules", "_is_hf_initialized", "_non_persistent_buffers_set"}
"""Attributes of a module that are compared otherwise, or say nothing of what it computes."""


def trace_like_layers(model: PreTrainedModel, trace_model: Callable[[PreTrainedModel], Any]) -> Any:
    """Trace a model, each kind of its layers only twice.

    Args:
        model: comes back as it was.
        trace_model: makes a `torch.onnx.ONNXProgram` whose initializers have the names of the parameters, and whose
            nodes still tell their modules.

    Returns:
        The program of the whole model.
    """
    plan = plan_layers(model)
    if plan is None:
        return trace_model(model)
    with layers_alone(model, plan.transformer, 0, plan.traced):
        program = trace_model(model)
    try:
        continue_layers(program.model.graph, model, plan)
    except UnexpectedGraph:
        return trace_model(model)
    return program


def plan_layers(model: PreTrainedModel) -> TracePlan | None:
    """The fewest first layers of which two are like each layer that follows.

    None where those are all, and where layers share parameters: the traced ones may where those that follow do not.
    """
    try:
        transformer = find_layers(model)
    except ModelUnsupported:
        return None
    layers = transformer.layers
    owned = [parameter for layer in layers for parameter in set(layer.parameters())]
    if len(set(owned)) < len(owned):
        return None
    listed = [value for value in vars(model.config).values() if isinstance(value, list | tuple)]
    told = [[str(value[index]) for value in listed if len(value) == len(layers)] for index in range(len(layers))]
    kinds: list[int] = []
    for index, layer in enumerate(layers):
        firsts = sorted(set(kinds))
        kinds.append(next((one for one in firsts if told[one] == told[index] and alike(layers[one], layer)), index))
    for traced in range(2, len(layers)):
        members = [[index for index in range(traced) if kinds[index] == kind] for kind in kinds[traced:]]
        if all(len(found) >= 2 for found in members):
            return TracePlan(transformer, traced, tuple((found[-2], found[-1]) for found in members))
    return None


def alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two layers differ in nothing but the values of their parameters, and in their numbers."""
    pairs = list(zip(one.named_modules(), other.named_modules(), strict=False))
    same_tree = len(list(one.modules())) == len(list(other.modules()))
    return same_tree and all(name == its and _alike_alone(module, like) for (name, module), (its, like) in pairs)


def _alike_alone(one: nn.Module, other: nn.Module) -> bool:
    """See `alike`; without the modules inside."""
    shapes = [
        {name: None if value is None else (value.shape, value.dtype) for name, value in module._parameters.items()}
        for module in (one, other)
    ]
    mine, its = (
        {name: value for name, value in vars(module).items() if name not in NOT_OF_A_KIND} | dict(module._buffers)
        for module in (one, other)
    )
    return (
        type(one) is type(other)
        and shapes[0] == shapes[1]
        and mine.keys() == its.keys()
        and all(name == "layer_idx" or _equal(value, its[name]) for name, value in mine.items())
    )


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, nn.Module):
        return alike(one, other)
    if isinstance(one, partial):
        return (one.func, one.args, one.keywords) == (other.func, other.args, other.keywords)
    try:
        return bool(one == other)
    except (ValueError, RuntimeError):
        # Of arrays, or of lists of them: nobody says whether all elements are meant.
        return False
