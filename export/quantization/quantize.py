"""A model's linear layers rounded to int4, layer by layer, each seeing what the rounded layers before it produce."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from export.number_formats.number_format import LOW_RANK
from export.packing.linear_graph import module_path
from export.quantization.scale_tuning import tune_scales
from export.quantization.sensitivity import harms, most_harmed
from export.quantization.settings import GROUP_SIZES, TUNING_BATCH, PlannedQuantization, needs_copy
from export.quantization.text import windows_of
from export.quantization.vocabulary import Vocabulary, find_vocabulary, round_vocabulary
from shearling.console import log
from shearling.errors import UsageError
from shearling.evaluation.precision import resolve_precision
from shearling.kernel.packed_format import Matrix, ValueType
from shearling.model.arithmetic import computed_in, copied_in
from shearling.model.layers import TransformerLayers, find_layers
from shearling.model.skeleton import open_skeleton
from shearling.quantization.layerwise import SMALLEST_GROUP, narrowed_group, round_layers
from shearling.quantization.rounding import Rounded, round_matrix

if TYPE_CHECKING:
    from torch import Tensor, nn

BITS = 4
SEED = 0
"""Places the windows."""


@dataclass(frozen=True)
class Quantized:
    """Integers and scales, and what they cost.

    Attributes:
        matrices: module path -> integers of four bits, or of eight where that was spared, scales in float16; a linear
            layer that no group divides is not among them. An embedding and a head that are one matrix are one object
            here as well.
        layer_error: mean over the layers' matrices of four bits of the squared error of its outputs, as a share of
            their squares, before any tuning; 0 where none has four, None where it was not measured.
        seconds: that it took.
        distances: KL to the model in float32 at each step of the tuning; empty where there was none.
        put_back: pruned weights that were rounded to another number than zero, and are zero again.
    """

    matrices: dict[str, Matrix]
    layer_error: float | None
    seconds: float
    distances: tuple[float, ...] = ()
    put_back: int = 0

    @property
    def in_four_bits(self) -> int:
        """Number of matrices."""
        return sum(matrix.value_type is ValueType.INT4 for matrix in self.matrices.values())


def check_group_size(checkpoint: Path, plan: PlannedQuantization, *, narrowed: Mapping[str, int]) -> None:
    """Refuse early the group that `quantize` would refuse late, as far as a checkpoint's headers show its layers.

    Args:
        checkpoint: the frozen model.
        plan: how.
        narrowed: module path -> inputs of a linear layer that has fewer than there.

    Raises:
        UsageError: see `quantize`.
    """
    skeleton = open_skeleton(checkpoint)
    if skeleton is None or plan.narrower:
        return
    vocabulary = find_vocabulary(skeleton.model) if plan.all_layers else None
    columns = _columns(skeleton.transformer, vocabulary)
    dict(_group_sizes({path: narrowed.get(path, width) for path, width in columns.items()}, plan))


def quantize(model: nn.Module, tokenizer: Any, plan: PlannedQuantization, *, classifier: bool) -> Quantized:
    """Round every linear layer inside the transformer layers, and the embedding and the head where the plan says so.

    Args:
        model: eval mode; not modified. One layer of it is held in float32 at a time; where all matrices are weighed or
            tuned together, or the vocabulary is rounded too, a copy of the model is, and two if its own weights are of
            another type.
        tokenizer: of the model.
        plan: how.
        classifier: tune by last hidden states; see `shearling.calibration.distillation.distil`.

    Raises:
        UsageError: a matrix cannot have the group that was asked for, or no matrix has any.
        ModelUnsupported, NonFiniteWeights: see `shearling.calibration`.
    """
    started = time.perf_counter()
    streams = plan.text.streams(tokenizer, classifies=classifier)
    together = needs_copy(plan)
    student = _in_float32(model) if together else model
    if together and any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        model = _in_float32(model)
    transformer = find_layers(student)
    vocabulary = find_vocabulary(student) if plan.all_layers else None
    groups = find_groups(transformer, vocabulary, plan)
    bf16 = resolve_precision("auto", device=next(student.parameters()).device.type) == "bf16"
    windows = windows_of(streams, plan.samples, seed=SEED)
    if together:
        layers = round_layers(student, transformer, windows, groups, bits=BITS, bf16=bf16)
    else:
        # Nobody needs the rounded weights when the next layer's inputs are known.
        with computed_in(student, torch.float32, without=transformer.layers):
            hold = partial(_held_in_float32, transformer)
            layers = round_layers(student, transformer, windows, groups, bits=BITS, bf16=bf16, hold=hold)
    rounded = dict(layers.matrices)
    if plan.ratio < 1:
        rounded |= _spare(model, rounded, windows, plan.ratio, bf16=bf16)
        for path, result in rounded.items():
            weight: Any = student.get_submodule(path).weight
            weight.data.copy_(result.weight)
    if vocabulary is not None and vocabulary.head in groups:
        size = groups[vocabulary.head]
        rounded |= round_vocabulary(student, vocabulary, windows, group_size=size, bf16=bf16)
    tuning = windows_of(streams, plan.tuning_steps * TUNING_BATCH, seed=SEED + 1)
    distances = tune_scales(student, model, rounded, tuning, classifier=classifier, bf16=bf16) if together else []
    made = {id(result): as_matrix(result) for result in rounded.values()}
    matrices = {module_path(path): made[id(result)] for path, result in rounded.items()}
    seconds = time.perf_counter() - started
    errors = [error for path, error in layers.errors.items() if rounded[path].bits == BITS]
    return Quantized(matrices, sum(errors) / max(1, len(errors)), seconds, tuple(distances))


def find_groups(
    transformer: TransformerLayers, vocabulary: Vocabulary | None, plan: PlannedQuantization
) -> dict[str, int]:
    """Module path -> columns per scale, of every matrix that can have four bits; says how many cannot.

    Raises:
        UsageError: see `quantize`.
    """
    groups = dict(_group_sizes(_columns(transformer, vocabulary), plan))
    others = [path for path, size in groups.items() if not size]
    groups = {path: size for path, size in groups.items() if size}
    if others:
        log.print(f"{len(others)} matrices stay in int8, the first is {others[0]}: no group divides their inputs")
    if not groups:
        raise UsageError(
            f"no group of {SMALLEST_GROUP} columns or more divides the inputs of any layer",
            where="--weight-format int4",
            remedy="Use --weight-format int8, or --quantization fast",
        )
    return groups


def _held_in_float32(transformer: TransformerLayers, index: int) -> AbstractContextManager[None]:
    return copied_in(transformer.layers[index], torch.float32)


def _in_float32(model: nn.Module) -> nn.Module:
    """A frozen copy, made parameter by parameter."""
    copies: dict[int, Any] = {
        id(parameter): torch.nn.Parameter(parameter.detach().to(torch.float32, copy=True), requires_grad=False)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, copies).eval()


def _spare(
    model: nn.Module, rounded: Mapping[str, Rounded], windows: Sequence[Tensor], ratio: float, *, bf16: bool
) -> dict[str, Rounded]:
    """In eight bits the matrices that four hurt most."""
    harm = harms(model, rounded, windows, bf16=bf16)
    spared = most_harmed(harm, {path: result.codes.numel() for path, result in rounded.items()}, share=1 - ratio)
    log.print(f"{len(spared)} of {len(rounded)} matrices have eight bits, the first is {min(spared, default='none')}")
    result = {}
    for path in spared:
        parameter: Any = model.get_submodule(path).weight
        weight, width = parameter.detach(), parameter.shape[1]
        # Eight bits are so fine that what enters the layer makes no difference.
        result[path] = round_matrix(weight, torch.eye(width), group_size=width, passes=1, bits=8)
    return result


def _columns(transformer: TransformerLayers, vocabulary: Vocabulary | None) -> dict[str, int]:
    """Module path -> inputs of every matrix that is to be rounded."""
    columns = {path: linear.in_features for path, linear in transformer.linears().items()}
    columns = {path: width for path, width in columns.items() if path.rpartition(".")[2] not in LOW_RANK}
    return columns if vocabulary is None else {**columns, vocabulary.head: vocabulary.columns}


def _group_sizes(columns: Mapping[str, int], plan: PlannedQuantization) -> Iterator[tuple[str, int]]:
    """Columns per scale of every matrix; 0 leaves it as it is."""
    for path, width in columns.items():
        size = plan.group_size
        if width % size and not plan.narrower:
            able = [str(item) for item in GROUP_SIZES if width % item == 0]
            raise UsageError(
                f"a group of {size} does not divide the {width} inputs of {path}",
                where="--group-size",
                remedy=f"Give {' or '.join(able)}" if able else "Leave the option out",
            )
        yield path, narrowed_group(width, size)


def as_matrix(rounded: Rounded) -> Matrix:
    """What the files store."""
    kind = ValueType.INT4 if rounded.bits == BITS else ValueType.INT8
    codes, scales = rounded.codes.numpy().astype(np.int8), rounded.scales.numpy().astype(np.float16)
    return Matrix(codes, kind, scales, rounded.group_size)
