"""What an export takes of memory and disk, known from the sizes of the weights before any of them is read.

Weights are views of files whose pages are given back, so that an export holds what it makes: the stored form of one
format at a time, and some copies of the largest matrix. A runtime that is asked for its logits maps the file and keeps
a copy in an order of its own. Where there is far more room than that, the pages stay: those who read a whole model a
hundred times over, as the gates do, would wait for them each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from export.formats.export_format import PlannedFormat
from export.quantization.settings import TUNING_BATCH, PlannedQuantization, needs_copy
from export.quantization.text import WINDOW_TOKENS as CALIBRATION_TOKENS
from export.verification.parity import BATCH_ROWS, BATCH_TOKENS, BLOCK_TOKENS
from export.verification.reading import WINDOW_TOKENS
from shearling.model.weight_shards import StoredWeights
from shearling.resources import Estimate, cuda_libraries_bytes

LIBRARIES_BYTES = 665 * 2**20
"""Python, torch and transformers: all that a format needs which no runtime reads. These are of a new environment: the
files of its libraries lie in memory in larger pieces than those of an old one, which takes 130 MiB less.
"""
RUNTIME_LIBRARIES_BYTES = 805 * 2**20
"""With OpenVINO and NNCF, or with ONNX and its runtime, and what a graph without weights takes."""
MERGING_LIBRARIES_BYTES = 1100 * 2**20
"""With what a super-network, its adapter and the count of its zeros need as well."""
PAGES_BYTES = 128 * 2**20
"""Of mapped files, between two times that they are given back."""
AMPLE_ROOM = 2
"""Times the mapped files, beside all else, from which on their pages stay."""
COPIES = 1.5
"""Of the largest matrix in float32, while it is merged, converted and rounded."""
RUNTIME_COPIES = 2.2
"""Of a file that a runtime has loaded: its pages, and its weights in the runtime's own order."""
SCALE_BITS = 0.5
"""Of the scales of integers, for each weight."""
FLOAT32_BYTES = 4
LAYER_MATRICES, GRAMS = 6, 6
"""In float32 while a layer is rounded on text: matrices as large as its largest, and squares of its widest input."""
NNCF_BYTES, GPTQ_BYTES = 5.5, 12
"""For each weight in float32, while NNCF rounds on text: what its runtime holds, and the integers; with GPTQ also the
weights that have taken up errors.
"""
FIXED_POSITIONS = 5 * BLOCK_TOKENS
"""Whose logits are held, of torch and of a runtime, beside those of held-back text."""


@dataclass(frozen=True)
class WeightSizes:
    """The weights of a frozen model.

    Attributes:
        parameters: all of them.
        vocabulary: of them in matrices with a row for each token.
        largest: of the largest matrix.
        inner: of the largest one besides those of the vocabulary.
        widest: most columns of such a one.
        rows: of the vocabulary.
        stored_bytes: in the files.
        float16: whether some are, of which OpenVINO takes no view, as it does of bfloat16.
    """

    parameters: int
    vocabulary: int
    largest: int
    inner: int
    widest: int
    rows: int
    stored_bytes: int
    float16: bool = False


def read_sizes(directory: Path, *, rows: int) -> WeightSizes:
    """The sizes of a checkpoint's weights, from the headers of its files.

    Args:
        directory: of the checkpoint.
        rows: of the vocabulary.
    """
    weights = StoredWeights(directory)
    counts = {name: tensor.count for name, tensor in weights.tensors.items()}
    matrices = {name: tensor for name, tensor in weights.tensors.items() if len(tensor.shape) == 2}
    tokens = {name for name, tensor in matrices.items() if tensor.shape[0] == rows}
    others = [tensor for name, tensor in matrices.items() if name not in tokens]
    return WeightSizes(
        parameters=sum(counts.values()),
        vocabulary=sum(counts[name] for name in tokens),
        largest=max(counts.values()),
        inner=max((tensor.count for tensor in others), default=0),
        widest=max((tensor.shape[1] for tensor in others), default=0),
        rows=rows,
        stored_bytes=weights.size_bytes,
        float16=any(tensor.dtype == "float16" for tensor in weights.tensors.values()),
    )


def estimate_export(
    sizes: WeightSizes,
    formats: Sequence[PlannedFormat],
    quantization: PlannedQuantization | None,
    *,
    merges: bool,
    positions: int,
    rounds: bool = False,
) -> Estimate:
    """Peak of the memory, and all that is written.

    Args:
        sizes: of the frozen model.
        formats: that are written, one after the other.
        quantization: how int4 is made on text; None where it is not.
        merges: whether merged weights are written first, which the checkpoint shares.
        positions: of text that each file reads; 0 where none is run.
        rounds: whether what is merged was trained or chosen on integers, and is therefore a model in float32.
    """
    rounded = _rounded_bytes(sizes) if rounds else 0
    if rounds:
        sizes = replace(sizes, stored_bytes=FLOAT32_BYTES * sizes.parameters)
    # Torch's, of all that is compared later, while int4 is made on text.
    compared = FLOAT32_BYTES * sizes.rows * positions if quantization is not None else 0
    held = [_quantization_bytes(sizes, quantization) + compared, *(_writing_bytes(sizes, item) for item in formats)]
    if positions:
        held += [_running_bytes(sizes, item) + _logits_bytes(sizes, positions) for item in formats]
    disk = sum(file_bytes(sizes, item) for item in formats) + (sizes.stored_bytes if merges else 0)
    if merges and any(item.entry.name == "hf" for item in formats):
        # It shares the merged weights.
        disk -= sizes.stored_bytes
    run = any(item.entry.takes_weight_format for item in formats)
    return Estimate(_working_bytes(sizes, run=run, merges=merges) + rounded + max(held), disk)


def parts_to_run(
    sizes: WeightSizes, planned: PlannedFormat, *, positions: int, room_bytes: int, rounds: bool = False
) -> int:
    """In how many parts of its layers a format can be run; 1 is whole, or not at all.

    Args:
        sizes: of the frozen model.
        planned: the format.
        positions: of text that it reads.
        room_bytes: memory of this machine.
        rounds: see `estimate_export`.
    """
    if rounds:
        room_bytes -= _rounded_bytes(sizes)
        sizes = replace(sizes, stored_bytes=FLOAT32_BYTES * sizes.parameters)
    left = room_bytes - _working_bytes(sizes, run=True, merges=True) - _logits_bytes(sizes, positions)
    fixed = _running_bytes(_without_layers(sizes), planned)
    layers = _running_bytes(sizes, planned) - fixed
    if fixed + layers <= left or left <= fixed:
        return 1
    return -(-layers // (left - fixed))


def keep_pages(
    estimate: Estimate, sizes: WeightSizes, *, merges: bool, rounds: bool, room_bytes: int
) -> Estimate | None:
    """What an export takes that keeps the pages of its mapped files in memory; None where the room is not ample.

    Args:
        estimate: of one that gives them back.
        sizes: of the frozen model.
        merges: see `estimate_export`.
        rounds: see `estimate_export`.
        room_bytes: memory of this machine.
    """
    # What was merged has files of its own; else the frozen model's are mapped twice, and count for each.
    merged_bytes = FLOAT32_BYTES * sizes.parameters if merges and rounds else sizes.stored_bytes
    mapped_bytes = sizes.stored_bytes + merged_bytes
    if room_bytes < estimate.memory_bytes + AMPLE_ROOM * mapped_bytes:
        return None
    return replace(estimate, memory_bytes=estimate.memory_bytes + mapped_bytes)


def _without_layers(sizes: WeightSizes) -> WeightSizes:
    """The same without any layer: what each part of a model has."""
    return replace(sizes, parameters=sizes.vocabulary)


def file_bytes(sizes: WeightSizes, planned: PlannedFormat) -> int:
    """Of what a format writes."""
    if planned.entry.needs_adapter:
        return 0
    if not planned.entry.takes_weight_format:
        return sizes.stored_bytes
    number_format, layers = planned.storage.weight_format, sizes.parameters - sizes.vocabulary
    if not number_format.integers:
        return sizes.parameters * number_format.bits // 8
    # OpenVINO has its vocabulary in eight bits at least, plain ONNX in float32.
    bits = 32 if planned.entry.name == "onnx" else max(number_format.bits, 8)
    return int(layers * (number_format.bits + SCALE_BITS) + sizes.vocabulary * bits) // 8


def _working_bytes(sizes: WeightSizes, *, run: bool, merges: bool) -> int:
    """Libraries, mapped files, and the matrix that is worked on: of the vocabulary where a graph is made, or torch
    computes what was merged.
    """
    libraries = MERGING_LIBRARIES_BYTES if merges else RUNTIME_LIBRARIES_BYTES if run else LIBRARIES_BYTES
    matrix = sizes.largest if run or merges else sizes.inner
    return (
        libraries + cuda_libraries_bytes() + min(sizes.stored_bytes, PAGES_BYTES) + int(COPIES * FLOAT32_BYTES * matrix)
    )


def _logits_bytes(sizes: WeightSizes, positions: int) -> int:
    """Of torch, and of what a runtime reads at a time: a block, in pieces and whole, or a padded batch."""
    read = min(positions, max(2 * WINDOW_TOKENS, BATCH_ROWS * BATCH_TOKENS))
    return FLOAT32_BYTES * sizes.rows * (positions + read)


def _running_bytes(sizes: WeightSizes, planned: PlannedFormat) -> int:
    """What a runtime holds of a file, or of a part of it; nothing where no runtime is asked."""
    if not planned.entry.takes_weight_format:
        return 0
    fixed = file_bytes(_without_layers(sizes), planned)
    return int(RUNTIME_COPIES * (fixed + (file_bytes(sizes, planned) - fixed) / planned.parts))


def _writing_bytes(sizes: WeightSizes, planned: PlannedFormat) -> int:
    """What is held of a format until its file is complete."""
    if not planned.entry.takes_weight_format:
        return 0
    number_format, name = planned.storage.weight_format, planned.entry.name
    made = 0
    if number_format.integers:
        made = file_bytes(sizes, planned) - (FLOAT32_BYTES * sizes.vocabulary if name == "onnx" else 0)
    elif name == "openvino" and not _is_halved(sizes) and number_format.bits == 16:
        made = file_bytes(sizes, planned)
    return made * (2 if planned.storage.sparse_kernel else 1) + _widened_bytes(sizes, planned)


def _widened_bytes(sizes: WeightSizes, planned: PlannedFormat) -> int:
    """Copies in float32 of weights in half precision, where a graph holds all of them before it is written."""
    number_format, name = planned.storage.weight_format, planned.entry.name
    if name == "onnx-genai":
        # In float32 these are copies, too, of what the file is made of.
        copied = _is_halved(sizes) or not number_format.integers
    else:
        viewed = not sizes.float16 and (number_format.integers or number_format.name == "bf16")
        copied = name == "openvino" and _is_halved(sizes) and not viewed
    return FLOAT32_BYTES * sizes.parameters if copied else 0


def _is_halved(sizes: WeightSizes) -> bool:
    return sizes.stored_bytes < FLOAT32_BYTES * sizes.parameters


def _rounded_bytes(sizes: WeightSizes) -> int:
    """Of a frozen model in float32, which is a view of its files only if they are, and the integers of its layers."""
    copied = sizes.parameters if _is_halved(sizes) else 0
    return FLOAT32_BYTES * copied + sizes.parameters - sizes.vocabulary


def _quantization_bytes(sizes: WeightSizes, planned: PlannedQuantization | None) -> int:
    """Of a layer in float32, what enters it, and all integers; where matrices are judged together, of two models."""
    if planned is None:
        return 0
    if planned.algorithms:
        return _nncf_bytes(sizes, planned)
    if needs_copy(planned):
        models = ((2 if _is_halved(sizes) else 1) * FLOAT32_BYTES + 1) * sizes.parameters
        # While scales are tuned, the weights that they make wait for the backward.
        tuned = sizes.parameters if planned.all_layers else sizes.parameters - sizes.vocabulary
        # Logits of student and teacher, and what they differ by.
        logits = 3 * TUNING_BATCH * CALIBRATION_TOKENS * sizes.rows
        return models + (FLOAT32_BYTES * (tuned + logits) if planned.tuning_steps else 0)
    return sizes.parameters + FLOAT32_BYTES * (LAYER_MATRICES * sizes.inner + GRAMS * sizes.widest**2)


def _nncf_bytes(sizes: WeightSizes, planned: PlannedQuantization) -> int:
    """Of a model that NNCF runs on windows, and whose matrices it rounds; GPTQ keeps what enters them and comes out."""
    if "gptq" in planned.algorithms:
        kept = 2 * planned.samples * CALIBRATION_TOKENS * sizes.widest
        return int(GPTQ_BYTES * sizes.parameters) + FLOAT32_BYTES * kept
    return int((NNCF_BYTES + FLOAT32_BYTES * _is_halved(sizes)) * sizes.parameters)
