"""ONNX with the KV cache as inputs and outputs, for plain ONNX Runtime.

The graph is what `torch.export` traces, without the exporter's optimizer: ONNX Runtime optimizes when it loads, and
so the weights keep the names and the orientation [out, in] that Hugging Face gives them.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from export.formats.export_format import (
    REMAINDER,
    Blocks,
    ExportSubject,
    FormatWriter,
    Storage,
    UsageFacts,
)
from export.formats.hollow import as_float32, hollow
from export.formats.like_layers import trace_like_layers
from export.number_formats.number_format import LOW_RANK, StoreGraph
from export.number_formats.onnx_graph import lazy_tensor
from export.packing.linear_graph import module_path
from export.packing.packing_report import PackingReport
from export.quantization.integer_graph import place_in_graph
from export.quiet_conversion import quiet_conversion
from export.verification.parity import LogitsInTurn, cached_calls, padded_batch
from export.verification.reading import MeasuredLogits
from export.verification.zeros import Zeros, read_onnx
from shearling.errors import ArtefactCorrupt, ModelUnsupported
from shearling.kernel.build import build_onnx_runtime_library
from shearling.kernel.onnx_runtime_extension import open_session
from shearling.model.checkpoint import load_tokenizer, save_configurations
from shearling.model.context_length import read_context_length
from shearling.model.head import Head

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from shearling.evaluation.evaluator import Evaluation
    from shearling.evaluation.task_evaluator import TaskEvaluator
    from shearling.kernel.packed_format import Matrix

NAME = "onnx"
MODEL_ONNX = "model.onnx"
OPSET = 18
LENGTH_DEPENDENT_ROPES = {"longrope", "su", "dynamic"}
"""Rotary embeddings that `torch.export` does not trace; `su` is what early checkpoints call LongRoPE."""

USAGE = """\
import onnxruntime

# or: python -m serve generate . --format onnx --prompt Hello
session = onnxruntime.InferenceSession("onnx/model.onnx")"""

SPARSE_USAGE = """\
# The wheel shearling-runtime needs neither Shearling nor a compiler; `make wheels` in a checkout builds it.
# or, with Shearling: python -m serve generate . --format onnx --prompt Hello
import onnxruntime
import shearling_runtime

session = onnxruntime.InferenceSession("onnx/model.onnx", shearling_runtime.session_options())"""


Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, [batch, heads, positions, width]."""


class TracedModel(nn.Module):
    """What is traced in the place of a Hugging Face model, whose parameters `trace` gives their own names again."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model


class DecoderWithCache(TracedModel):
    """A decoder as a function of tokens and cache, without a cache object in its signature."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past: Cache, position_ids: Tensor | None = None
    ) -> tuple[Tensor, Cache]:
        """Score S tokens after P cached ones.

        Args:
            input_ids: [B, S].
            attention_mask: [B, P + S], 0 at padding.
            past: of P positions; P may be 0.
            position_ids: [B, S]; None for a model that derives its positions from the mask.

        Returns:
            logits [B, S, V], and the cache of P + S positions.
        """
        from transformers import DynamicCache

        # Without the configuration: each layer keeps all positions, and the mask alone makes a sliding window.
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(past):
            cache.update(keys, values, layer)
        positions = {} if position_ids is None else {"position_ids": position_ids}
        output = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **positions
        )
        return output.logits, [(layer.keys, layer.values) for layer in cache.layers]


class OnnxDecoder(FormatWriter):
    """A decoder with its cache as inputs and outputs."""

    head: ClassVar[Head] = "language_model"
    name: ClassVar[str] = NAME
    fused: ClassVar[bool] = False

    def check(self, model_type: str, storage: Storage) -> None:
        """See `FormatWriter`."""
        if storage.sparse_kernel:
            build_onnx_runtime_library()

    def check_config(self, config: Mapping[str, Any], *, where: Path) -> None:
        """See `FormatWriter`."""
        kinds = _rope_types(config) & LENGTH_DEPENDENT_ROPES
        if kinds:
            raise ModelUnsupported(
                f"its rotary embedding is of the kind {kinds.pop()}, whose angles depend on the length of the text, "
                f"and {self.name} holds those of one length",
                where=where,
                remedy="Use --formats openvino",
            )

    def write(self, subject: ExportSubject, directory: Path, storage: Storage) -> PackingReport | None:
        """See `FormatWriter`."""
        return write_onnx(subject.model, subject.tokenizer, directory, storage, integers=subject.integers)

    def measure(self, directory: Path, blocks: Blocks, storage: Storage) -> Iterator[MeasuredLogits]:
        """Rows alone, and in a padded batch; arithmetic is float32."""
        yield MeasuredLogits(self.name, storage.weight_format.name, self.logits(directory, blocks))
        yield MeasuredLogits(f"{self.name}, padded batch", storage.weight_format.name, self.batched(directory, blocks))

    def filler(self, directory: Path) -> int:
        """Token of padding; a decoder never looks at it."""
        return 0

    def batched(self, directory: Path, blocks: Blocks) -> LogitsInTurn:
        """Logits of the rows of a padded batch."""
        batch = padded_batch(blocks, head=self.head, fused=self.fused, filler=self.filler(directory))
        session = open_session(directory / MODEL_ONNX)
        inputs = {item.name: item for item in session.get_inputs()}
        feed = {**batch.feed, "token_type_ids": np.zeros_like(batch.feed["input_ids"])}
        feed |= _empty_caches(inputs, rows=len(batch.lengths))
        return batch.rows_of(session.run(["logits"], {name: feed[name] for name in inputs})[0])

    def answer(self, directory: Path, evaluator: TaskEvaluator) -> Evaluation:
        """See `FormatWriter`."""
        session, tokenizer = open_session(directory / MODEL_ONNX), load_tokenizer(directory)
        return evaluator.on_onnx(session, tokenizer, max_length=read_context_length(directory, tokenizer))()

    def logits(self, directory: Path, blocks: Blocks) -> LogitsInTurn:
        """Of what was written."""
        return onnx_logits(directory, blocks)

    def read_zeros(self, directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> Zeros | None:
        """See `FormatWriter`."""
        return read_onnx(directory, shapes)

    def usage(self, facts: UsageFacts) -> str | None:
        """See `FormatWriter`."""
        return SPARSE_USAGE if facts.packed else USAGE


def _rope_types(config: Mapping[str, Any]) -> set[str]:
    """Kinds of rotary embeddings of a config.json: one of all layers, or one of each type of layer."""
    found: set[str] = set()
    for name in ("rope_parameters", "rope_scaling"):
        given = config.get(name)
        entries = [given, *given.values()] if isinstance(given, dict) else []
        for entry in entries:
            if isinstance(entry, dict):
                found.add(str(entry.get("rope_type", entry.get("type"))))
    return found


def write_onnx(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    storage: Storage,
    *,
    integers: Mapping[str, Matrix] | None = None,
) -> PackingReport | None:
    """Export a decoder to `directory/model.onnx` with its weights in `model.onnx.data`, and the tokenizer beside it.

    Inputs input_ids, attention_mask, position_ids (where the model takes them), past_key_values.{i}.key and .value;
    outputs logits, present.{i}.key and .value; batch, sequence and past are dynamic, and the past may be empty.

    Args:
        model: eval mode.
        tokenizer: saved in the Hugging Face format.
        directory: created.
        storage: number format and kernel; arithmetic and cache stay float32. For the sparse kernel see
            `export.packing.packed_onnx`.
        integers: see `ExportSubject.integers`.

    Returns:
        What was packed; None for the stock kernel.

    Raises:
        ArtefactCorrupt: the written files do not hold all weights.
    """
    # The head may share its weight with the embedding, and its error would go straight into the logits.
    linears = quantizable(model, without=model.get_output_embeddings())
    packing = store_graph(traced(model, trace_decoder), directory, storage, linears=linears, integers=integers)
    save_beside(model, tokenizer, directory)
    return packing


def save_beside(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write what a graph does not hold: the tokenizer and the configurations."""
    tokenizer.save_pretrained(str(directory))
    save_configurations(model, directory)


def store_graph(
    program: Any,
    directory: Path,
    storage: Storage,
    *,
    linears: Collection[str],
    integers: Mapping[str, Matrix] | None = None,
) -> PackingReport | None:
    """Write a traced program with its weights in the form asked for.

    Args:
        program: see `trace`.
        directory: created.
        storage: number format and kernel.
        linears: names of the weights that may be stored as integers.
        integers: see `ExportSubject.integers`.

    Returns:
        What was packed; None for the stock kernel.

    Raises:
        ArtefactCorrupt: the written files do not hold all weights.
        ModelUnsupported: the graph has no place for some of the integers.
    """
    from export.packing.packed_onnx import pack_graph

    directory.mkdir(parents=True, exist_ok=True)
    if integers:
        place_in_graph(program.model, integers)
    store: StoreGraph = (REMAINDER if integers else storage.weight_format).load_for(NAME)
    store(program.model, {name for name in linears if module_path(name) not in (integers or {})})
    packing = pack_graph(program.model) if storage.sparse_kernel else None
    program.save(directory / MODEL_ONNX, external_data=True)
    check_external_data(directory / MODEL_ONNX)
    return packing


def traced(model: PreTrainedModel, trace_model: Callable[[PreTrainedModel], Any]) -> Any:
    """Trace a model whose large weights take no part, and give them to the graph, each when it is asked for.

    Args:
        model: eval mode; comes back as it was.
        trace_model: such as `trace_decoder`.

    Returns:
        A `torch.onnx.ONNXProgram` in float32.
    """
    with hollow(model) as weights:
        program = trace_like_layers(model, trace_model)
    as_products(program.model.graph)
    forget_origins(program.model.graph)
    for value in program.model.graph.initializers.values():
        weight = weights.get(value.name)
        if weight is not None:
            value.const_value = lazy_tensor(value.name, weight.shape, np.float32, partial(as_float32, weight))
    return program


def trace_decoder(model: PreTrainedModel) -> Any:
    """See `trace`; inputs and outputs are those of `write_onnx`."""
    past = example_cache(model)
    batch, sequence, cached = 2, 3, past[0][0].shape[2]
    kwargs: dict[str, Any] = {
        "input_ids": torch.ones(batch, sequence, dtype=torch.long),
        "attention_mask": torch.ones(batch, cached + sequence, dtype=torch.long),
        "past": past,
    }
    shapes: dict[str, Any] = {
        "input_ids": {0: "batch", 1: "sequence"},
        "attention_mask": {0: "batch", 1: "total_sequence"},
        "past": [({0: "batch", 2: "past_sequence"}, {0: "batch", 2: "past_sequence"}) for _ in past],
    }
    cache_names = [f"{layer}.{part}" for layer in range(len(past)) for part in ("key", "value")]
    inputs = ["input_ids", "attention_mask", *(f"past_key_values.{name}" for name in cache_names)]
    if takes_positions(model):
        kwargs["position_ids"] = torch.arange(cached, cached + sequence).expand(batch, sequence).contiguous()
        shapes["position_ids"] = {0: "batch", 1: "sequence"}
        inputs.append("position_ids")
    outputs = ["logits", *(f"present.{name}" for name in cache_names)]
    return trace(DecoderWithCache(model), kwargs, shapes=shapes, inputs=inputs, outputs=outputs)


def trace(
    module: TracedModel,
    example: Mapping[str, Any],
    *,
    shapes: Mapping[str, Any],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> Any:
    """Trace to a `torch.onnx.ONNXProgram` with Hugging Face parameter names.

    Args:
        module: traced in eval mode.
        example: its arguments.
        shapes: of these, the names of the sizes that may change, by axis.
        inputs: their names in the graph.
        outputs: likewise.
    """
    from torch._dynamo import config

    # Where sizes are symbols, to look for the shapes of an operation takes longer than to work them out.
    without_cache = config.patch(fake_tensor_cache_enabled=False)
    with quiet_conversion(), torch.no_grad(), without_cache, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            kwargs=dict(example),
            dynamo=True,
            dynamic_shapes=dict(shapes),
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
        )
    if program is None:
        raise ValueError("torch.onnx.export returned nothing")
    name_weights(program.model.graph)
    return program


def takes_positions(model: PreTrainedModel) -> bool:
    """Whether the model is told positions; BLOOM's ALiBi counts them from the mask."""
    return "position_ids" in inspect.signature(model.forward).parameters


def check_external_data(path: Path) -> None:
    """Check that every weight lies within its data file: onnx.checker passes a truncated one.

    Raises:
        ArtefactCorrupt: a data file is missing or too short, or the graph is invalid.
    """
    import onnx

    graph = onnx.load(str(path), load_external_data=False)
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ArtefactCorrupt(f"not a valid ONNX model: {error}", where=path, remedy="Export again") from error
    for tensor in graph.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if not place:
            continue
        file = path.parent / place["location"]
        end_bytes = int(place.get("offset", 0)) + int(place["length"])
        if not file.is_file() or file.stat().st_size < end_bytes:
            found_bytes = file.stat().st_size if file.is_file() else 0
            raise ArtefactCorrupt(
                f"{tensor.name} ends at byte {end_bytes}, the file has {found_bytes}", where=file, remedy="Export again"
            )


def quantizable(model: PreTrainedModel, *, without: nn.Module | None = None, prefix: str = "") -> set[str]:
    """Names of the weights that may be stored as integers: those of linear layers, but for low-rank factors kept apart.

    Args:
        model: its modules.
        without: a module that is not.
        prefix: of the modules that are.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not without]
    return {f"{name}.weight" for name in names if name.startswith(prefix) and name.rpartition(".")[2] not in LOW_RANK}


def example_cache(model: PreTrainedModel) -> Cache:
    """The cache of a short forward, [2, heads, 5, width] each: what the heads of every layer are."""
    # More than one position, so that tracing takes none of the lengths for a constant.
    with torch.no_grad():
        output = model(input_ids=torch.ones(2, 5, dtype=torch.long), use_cache=True)
    return [(layer.keys.contiguous(), layer.values.contiguous()) for layer in output.past_key_values.layers]


def name_weights(graph: Any) -> None:
    """Give the initializers their Hugging Face names."""
    for value in list(graph.initializers.values()):
        value.name = value.name.removeprefix("model.")


def forget_origins(graph: Any) -> None:
    """Drop stack traces and paths of modules: ten times the graph itself, and they name directories of this machine."""
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()


def as_products(graph: Any) -> None:
    """Write linears of flat inputs, [tokens, width], as all others are written: a transposition, a product, and a sum
    where there is a bias. So are experts, whose tokens are gathered, and the MLP of OPT; the exporter makes Gemm of
    them, in which nothing that stores or reads weights would look for one.
    """
    import onnx_ir
    from onnx_ir.convenience import replace_nodes_and_values

    for gemm in [node for node in graph if node.op_type == "Gemm"]:
        x, weight, *rest = gemm.inputs
        scaled = any(gemm.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
        transposed = [gemm.attributes.get_int(name, 0) for name in ("transA", "transB")]
        if scaled or transposed != [0, 1] or not weight.is_initializer():
            continue
        turned = onnx_ir.node("Transpose", [weight], {"perm": [1, 0]}, name=f"{gemm.name}_transpose")
        nodes = [turned, onnx_ir.node("MatMul", [x, turned.outputs[0]], name=gemm.name)]
        if rest and rest[0] is not None:
            nodes.append(onnx_ir.node("Add", [nodes[-1].outputs[0], rest[0]], name=f"{gemm.name}_bias"))
        replace_nodes_and_values(graph, gemm, [gemm], nodes, gemm.outputs, nodes[-1].outputs)


def onnx_logits(directory: Path, blocks: Blocks) -> LogitsInTurn:
    """Logits of an ONNX decoder on ONNX Runtime's CPU provider, block by block, its cache passed from call to call.

    Args:
        directory: holds `model.onnx`.
        blocks: inputs.

    Raises:
        DeviceUnavailable: the runtime chose another provider.
    """
    session = open_session(directory / MODEL_ONNX)
    inputs = {item.name: item for item in session.get_inputs()}
    outputs = [item.name for item in session.get_outputs()]
    vocabulary = next(item for item in session.get_outputs() if item.name == "logits").shape[-1]
    for block in blocks:
        cache = _empty_caches(inputs, rows=1)
        logits, read = np.empty((len(block), vocabulary), dtype=np.float32), 0
        for feed in cached_calls(block):
            values = session.run(outputs, {name: value for name, value in feed.items() if name in inputs} | cache)
            named = dict(zip(outputs, values, strict=True))
            cache = {name: named[name.replace("past_key_values.", "present.")] for name in cache}
            output = named["logits"][0]
            logits[read : read + len(output)] = output
            read += len(output)
        yield logits


def _empty_caches(inputs: Mapping[str, Any], *, rows: int) -> dict[str, npt.NDArray[Any]]:
    """[rows, heads, 0, head size] of every cache among the inputs; heads and their size are fixed by the model."""
    return {
        name: np.zeros(
            [rows, *(size if isinstance(size, int) else 0 for size in item.shape[1:])],
            dtype=np.float16 if "float16" in item.type else np.float32,
        )
        for name, item in inputs.items()
        if name.startswith("past_key_values.")
    }
