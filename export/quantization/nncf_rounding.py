"""int4 by the algorithms of NNCF that see data: AWQ, scale estimation and GPTQ.

They run on an IR in float, and what they chose is read from it, so that every format holds the same integers. AWQ and
scale estimation keep every zero: the one scales the columns of a matrix, and the rows of the one before it by the
inverse; the other chooses scales, and zero is rounded to zero. GPTQ gives pruned weights a share of the errors of
others as well, and rounds some of them to another number: their zeros are put back.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from export.number_formats.compressed_ir import load_nncf
from export.number_formats.int4 import quantize_groups
from export.number_formats.number_format import LOW_RANK
from export.packing.linear_graph import module_path, only_reader, source
from export.packing.stored_weight import read_values
from export.quantization.quantize import SEED, Quantized, find_groups
from export.quantization.settings import PlannedQuantization, method_of
from export.quantization.text import windows_of
from export.quantization.vocabulary import find_vocabulary
from shearling.console import log
from shearling.errors import ModelUnsupported
from shearling.kernel.packed_format import Matrix, ValueType
from shearling.model.layers import find_layers
from shearling.quantization.rounding import LEAST_HALF

if TYPE_CHECKING:
    from torch import Tensor, nn

    from shearling.elastic.mask import Masks

VALUE_TYPES = {"i4": ValueType.INT4, "i8": ValueType.INT8}
AWQ_PRODUCT = "/awq_mul"
"""Ends the name of a product that AWQ puts into a graph where no matrix takes the inverse of its scales."""


def round_by_nncf(
    ir: Any, model: nn.Module, tokenizer: Any, plan: PlannedQuantization, *, masks: Masks | None, classifier: bool
) -> Quantized:
    """Let NNCF round every linear layer inside the transformer layers, and the embedding and the head where the plan
    says so.

    Args:
        ir: an `openvino.Model` of the model, with float weights; consumed.
        model: not modified.
        tokenizer: of the model.
        plan: names algorithms.
        masks: module path -> mask, True = kept; None where no zero is promised.
        classifier: the model is one.

    Raises:
        UsageError: a matrix cannot have the group that was asked for, or no matrix has any.
        ModelUnsupported: NNCF rounds one of the matrices no way that is known here, or its AWQ has nothing to scale,
            or changes more than matrices.
    """
    started = time.perf_counter()
    streams = plan.text.streams(tokenizer, classifies=classifier)
    windows = windows_of(streams, plan.samples, seed=SEED)
    transformer = find_layers(model)
    vocabulary = find_vocabulary(model) if plan.all_layers else None
    groups = find_groups(transformer, vocabulary, plan)
    wanted = {module_path(path) for path in transformer.linears() if path.rpartition(".")[2] not in LOW_RANK}
    tied: set[str] = set()
    if vocabulary is not None and vocabulary.head in groups:
        wanted |= {vocabulary.embedding, vocabulary.head}
        tied = {vocabulary.embedding, vocabulary.head} if vocabulary.tied else set()
    if "awq" in plan.algorithms:
        _check_awq(ir, {module_path(path) for path in groups})
    log.print(f"{method_of(None, plan.algorithms)} on {len(windows)} windows of {len(windows[0])} tokens")
    compressed = quantize_groups(
        ir,
        group_size=plan.group_size,
        all_layers=bool(vocabulary),
        ratio=plan.ratio,
        dataset=load_nncf().Dataset(_feeds(ir, windows)),
        subset_size=len(windows),
        **{str(name): True for name in plan.algorithms},
    )
    _check_products(compressed)
    matrices, put_back = _with_zeros(_read_matrices(compressed, wanted, tied), masks or {})
    return Quantized(matrices, None, time.perf_counter() - started, put_back=put_back)


def _feeds(ir: Any, windows: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Inputs of the IR, one window at a time."""
    names = {name for port in ir.inputs for name in port.names}
    feeds = []
    for window in windows:
        tokens = window.numpy()[None]
        feed = {
            "input_ids": tokens,
            "attention_mask": np.ones_like(tokens),
            "position_ids": np.arange(tokens.size)[None],
            "token_type_ids": np.zeros_like(tokens),
            "beam_idx": np.zeros(1, np.int32),
        }
        feeds.append({name: value for name, value in feed.items() if name in names})
    return feeds


def _check_awq(ir: Any, rounded: Collection[str]) -> None:
    """Refuse a graph in which AWQ would do nothing: it scales what a product of two products enters, as in a gated
    feed-forward layer, where the rows of one of the two take the inverse.

    Args:
        ir: with float weights.
        rounded: paths of modules whose weights have four bits.
    """
    for matmul in ir.get_ordered_ops():
        if _weight_of(matmul) not in rounded:
            continue
        multiply = source(matmul, 0)
        if multiply.get_type_name() == "Multiply" and any(_weight_of(source(multiply, port)) for port in (0, 1)):
            return
    raise ModelUnsupported(
        "AWQ has nothing to scale: no matrix in four bits reads the product of another matrix and a gate",
        where="--awq",
        remedy="Leave the option out",
    )


def _weight_of(node: Any) -> str | None:
    """Path of the module whose weight a node multiplies; None where it is no such node."""
    if node.get_type_name() != "MatMul":
        return None
    weight = source(node, 1)
    while weight.get_type_name() == "Convert":
        weight = source(weight, 0)
    return module_path(weight.get_friendly_name()) if weight.get_type_name() == "Constant" else None


def _check_products(compressed: Any) -> None:
    """Refuse a graph that AWQ gave products of its own, which integers and scales cannot tell."""
    for node in compressed.get_ops():
        if node.get_friendly_name().endswith(AWQ_PRODUCT):
            raise ModelUnsupported(
                f"AWQ multiplies the result of {node.get_friendly_name().removesuffix(AWQ_PRODUCT)}, since no matrix "
                "takes the inverse of its scales, and the formats have no place for that",
                where="--awq",
                remedy="Leave the option out",
            )


def _read_matrices(compressed: Any, wanted: Collection[str], tied: Collection[str]) -> dict[str, Matrix]:
    """Module path -> its weight, as NNCF rounded it.

    Args:
        compressed: an `openvino.Model` of integers and scales.
        wanted: paths of modules.
        tied: those of them that are one matrix, and one constant.
    """
    found: dict[str, Matrix] = {}
    for constant in compressed.get_ordered_ops():
        path = module_path(constant.get_friendly_name())
        matrix = _read_matrix(constant) if path in wanted and constant.get_type_name() == "Constant" else None
        if matrix is not None:
            found |= dict.fromkeys(tied if path in tied else [path], matrix)
    missing = sorted(set(wanted) - found.keys())
    if missing:
        raise ModelUnsupported(
            f"NNCF did not round the weight of {missing[0]}", where="--weight-format int4", remedy="Use --quantization"
        )
    return found


def _read_matrix(constant: Any) -> Matrix | None:
    """Integers and scales of a weight; None where it is no constant of them."""
    kind = VALUE_TYPES.get(constant.get_element_type().get_type_name())
    convert = None if kind is None else only_reader(constant)
    multiply = None if convert is None else only_reader(convert)
    if kind is None or multiply is None or multiply.get_type_name() != "Multiply":
        return None
    values = read_values(constant)
    values = values.reshape(len(values), -1)
    scales = np.array(source(multiply, 1).data).reshape(len(values), -1)
    # Of a group without a weight, scale estimation makes zero.
    empty = scales == 0
    group_size = values.shape[1] // scales.shape[1]
    values = np.where(np.repeat(empty, group_size, axis=1), 0, values)
    return Matrix(values, kind, np.where(empty, np.float16(LEAST_HALF), scales), group_size)


def _with_zeros(matrices: Mapping[str, Matrix], masks: Masks) -> tuple[dict[str, Matrix], int]:
    """Matrices whose pruned weights are zero, and how many were not."""
    kept, put_back = dict(matrices), 0
    for path, mask in masks.items():
        matrix, pruned = kept[module_path(path)], ~mask.numpy()
        lost = int(np.count_nonzero(matrix.values[pruned]))
        if lost:
            values = np.where(pruned, matrix.values.dtype.type(0), matrix.values)
            kept[module_path(path)] = Matrix(values, matrix.value_type, matrix.scales, matrix.group_size)
            put_back += lost
    return kept, put_back
