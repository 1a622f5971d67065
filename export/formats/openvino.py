"""OpenVINO IR: a stateful decoder with its tokenizer beside it, ready for `openvino_genai.LLMPipeline(directory,
"CPU")`.

The same model always gives the same bytes: names that OpenVINO numbers by a process-wide counter are numbered by
position.
"""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from export.formats.export_format import (
    REMAINDER,
    Blocks,
    ExportSubject,
    FormatWriter,
    Storage,
    UsageFacts,
)
from export.formats.filled_ir import empty_ir, fill_ir
from export.formats.hollow import Weights, hollow
from export.number_formats.number_format import StoreIr
from export.packing.packing_report import PackingReport
from export.quantization.integer_ir import place_in_ir
from export.quiet_conversion import quiet_conversion
from export.verification.parity import TEXT, LogitsInTurn, cached_calls, padded_batch
from export.verification.reading import MeasuredLogits
from export.verification.tokenizer_check import ConvertedTokenizer
from export.verification.zeros import Zeros, read_openvino
from shearling.console import log
from shearling.errors import ModelUnsupported
from shearling.kernel.openvino_core import openvino_core
from shearling.kernel.openvino_extension import (
    PREFERRED_PROPERTIES,
    compile_ir,
    needs_extension,
    node_factory,
    rewrites_attention,
)
from shearling.model.checkpoint import load_tokenizer, save_configurations
from shearling.model.context_length import read_context_length
from shearling.model.export_support import EXPORT_TASK, check_exportable
from shearling.model.head import Head

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from shearling.evaluation.evaluator import Evaluation
    from shearling.evaluation.task_evaluator import TaskEvaluator
    from shearling.kernel.packed_format import Matrix

NAME = "openvino"
MODEL_XML = "openvino_model.xml"
TOKENIZER_XML = "openvino_tokenizer.xml"
DETOKENIZER_XML = "openvino_detokenizer.xml"
NUMBERED_NAME = re.compile(r"[A-Z][A-Za-z0-9]*_\d+(?:[./_][\w./]*)?")

FLOAT32_CPU = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""Without these OpenVINO's CPU plugin computes in bfloat16, keeps an 8 or 16-bit cache, and quantizes activations."""

STORED_BLOCKS = 2
"""Of the text that the attention of a packed file reads, which loading it here puts into the layers."""

USAGE = """\
import openvino_genai

pipe = openvino_genai.LLMPipeline("openvino", "CPU")
print(pipe.generate("...", max_new_tokens=32))"""

SPARSE_USAGE = """\
# The wheel shearling-runtime needs neither Shearling nor a compiler; `make wheels` in a checkout builds it.
# or: shearling-run . --prompt Hello
import shearling_runtime

pipe = shearling_runtime.pipeline("openvino")  # an openvino_genai.LLMPipeline
print(pipe.generate("...", max_new_tokens=32))"""


class OpenVinoDecoder(FormatWriter):
    """A decoder with its cache as state."""

    head: ClassVar[Head] = "language_model"

    def check(self, model_type: str, storage: Storage) -> None:
        """See `FormatWriter`."""
        check_exportable(model_type, head=self.head)
        if storage.sparse_kernel:
            node_factory()

    def write(self, subject: ExportSubject, directory: Path, storage: Storage) -> PackingReport | None:
        """See `FormatWriter`."""
        return write_openvino(
            subject.model,
            subject.tokenizer,
            directory,
            storage,
            sparsity=subject.sparsity,
            conversion=self.conversion,
            integers=subject.integers,
        )

    def conversion(self, model: PreTrainedModel) -> dict[str, Any]:
        """Options of optimum-intel."""
        return decoder_conversion(model)

    def measure(self, directory: Path, blocks: Blocks, storage: Storage) -> Iterator[MeasuredLogits]:
        """In float32, which shows the file, rows alone and in a padded batch; and at the default precision, which users
        get. Where loading it here puts attention into the layers, also with that of the file, which other programs run.
        """
        number_format, xml = storage.weight_format, directory / MODEL_XML
        # Our operators' preferred properties are not the runtime's choice.
        default = None if needs_extension(xml) else number_format.computed_as
        ways: dict[str, tuple[Blocks, str | None]] = {NAME: (blocks, None)}
        if rewrites_attention(xml, FLOAT32_CPU):
            ways[f"{NAME}, attention as stored"] = blocks[:STORED_BLOCKS], "it is measured as other programs load it"
        for way, (read, obstacle) in ways.items():
            alone = self.logits(directory, read, FLOAT32_CPU, obstacle=obstacle)
            yield MeasuredLogits(way, number_format.name, alone)
            batched = self.batched(directory, blocks, obstacle=obstacle)
            yield MeasuredLogits(f"{way}, padded batch", number_format.name, batched)
        yield MeasuredLogits(
            f"{NAME}, default precision",
            default or number_format.name,
            self.logits(directory, blocks, {}),
            chosen_by_runtime=default is not None,
        )

    def filler(self, directory: Path) -> int:
        """Token of padding; a decoder never looks at it."""
        return 0

    def batched(self, directory: Path, blocks: Blocks, *, obstacle: str | None) -> LogitsInTurn:
        """Logits of the rows of a padded batch, in float32; the obstacle is that of `compile_ir`."""
        batch = padded_batch(blocks, head=self.head, filler=self.filler(directory))
        compiled = compile_ir(directory / MODEL_XML, properties=FLOAT32_CPU, obstacle=obstacle)
        request = compiled.create_infer_request()
        inputs = {name for port in request.model_inputs for name in port.names}
        rows = len(batch.lengths)
        feed = {**batch.feed, "beam_idx": np.arange(rows, dtype=np.int32)}
        feed["token_type_ids"] = np.zeros_like(batch.feed["input_ids"])
        request.infer({name: value for name, value in feed.items() if name in inputs})
        # A view of what the request holds: a copy would be as large as a small model.
        yield from batch.rows_of(request.get_tensor("logits").data)

    def answer(self, directory: Path, evaluator: TaskEvaluator) -> Evaluation:
        """See `FormatWriter`."""
        compiled = compile_ir(directory / MODEL_XML, preferred=PREFERRED_PROPERTIES)
        tokenizer = load_tokenizer(directory)
        return evaluator.on_openvino(compiled, tokenizer, max_length=read_context_length(directory, tokenizer))()

    def logits(
        self, directory: Path, blocks: Blocks, config: dict[str, str], *, obstacle: str | None = None
    ) -> LogitsInTurn:
        """Of what was written, compiled with these options; the obstacle is that of `compile_ir`."""
        return openvino_logits(directory, blocks, config=config, obstacle=obstacle)

    def converted_tokenizer(self, directory: Path) -> ConvertedTokenizer:
        """See `FormatWriter`."""
        return read_tokenizer(directory)

    def read_zeros(self, directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> Zeros | None:
        """See `FormatWriter`."""
        return read_openvino(directory, shapes)

    def usage(self, facts: UsageFacts) -> str | None:
        """See `FormatWriter`."""
        return SPARSE_USAGE if facts.packed else USAGE


def decoder_conversion(model: PreTrainedModel) -> dict[str, Any]:
    """How optimum-intel converts a decoder."""
    from export.formats.unequal_caches import conversion_options

    return {"task": EXPORT_TASK, "stateful": True, **conversion_options(model)}


def write_openvino(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    storage: Storage,
    *,
    sparsity: Mapping[str, str],
    conversion: Callable[[PreTrainedModel], Mapping[str, Any]] | None = None,
    integers: Mapping[str, Matrix] | None = None,
) -> PackingReport | None:
    """Export a model to `directory`, with tokenizer, detokenizer, chat template and configuration.

    Args:
        model: eval mode; its linears may be modules of ours that keep a low-rank adapter apart.
        tokenizer: converted to an OpenVINO model too.
        directory: created.
        storage: number format and kernel; zeros stay exactly zero in each. For the sparse kernel see
            `export.packing.packed_ir`.
        sparsity: written to the model's rt_info under `sparsity`.
        conversion: options of optimum-intel; None converts a decoder.
        integers: see `ExportSubject.integers`.

    Returns:
        What was packed; None for the stock kernel.

    Raises:
        CompilerMissing: the sparse operators cannot be built here.
        ModelUnsupported: the tokenizer has no OpenVINO form.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_tokenizer(tokenizer, directory)
    # Beside the destination, since OpenVINO maps the weights it reads into memory: a file must not be written over
    # itself.
    with tempfile.TemporaryDirectory(dir=directory, prefix=".raw-") as raw:
        ir = convert(model, Path(raw), decoder_conversion if conversion is None else conversion, storage)
        packing = store_ir(ir, directory, storage, sparsity=sparsity, integers=integers)
    save_configurations(model, directory)
    return packing


def convert(
    model: PreTrainedModel, directory: Path, options: Callable[[PreTrainedModel], Mapping[str, Any]], storage: Storage
) -> Any:
    """Let optimum-intel convert the model to an IR in float32.

    Its large weights take no part: they are put into the finished graph, as views of the model's. Where the converter
    makes something else of one of them, such as a constant that was folded, all of the model is converted.

    Args:
        model: eval mode; comes back as it was.
        directory: where the graph is written meanwhile; it must stay as long as the IR is used.
        options: such as `decoder_conversion` gives.
        storage: of the weights that will be made of it.

    Returns:
        An `openvino.Model`, whose weights are views as long as the model's are.
    """
    halved = storage.weight_format.integers or storage.weight_format.name == "bf16"
    with hollow(model) as weights, _saved_by(partial(_save_hollow, weights)):
        ir = _converted(model, directory, options(model))
    if fill_ir(ir, weights, halved=halved):
        return ir
    log.print("the graph has no place for some weights by themselves: the model is converted as a whole")
    # Elsewhere: a file that is mapped must not be written over.
    return _converted(copy.deepcopy(model).float(), directory / "whole", options(model))


def _converted(model: PreTrainedModel, directory: Path, options: Mapping[str, Any]) -> Any:
    _separate_buffers(model)
    with quiet_conversion(), _as_it_was(model):
        from optimum.exporters.openvino import export_from_model

        export_from_model(model, output=directory, **options)
    return openvino_core().read_model(directory / MODEL_XML)


def _separate_buffers(model: PreTrainedModel) -> None:
    """Give every buffer memory of its own: TorchScript refuses modules with a tensor under two names, as LongRoPE has
    once it has run.
    """
    seen: set[int] = set()
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            if id(buffer) in seen:
                setattr(module, name, buffer.clone())
            seen.add(id(buffer))


@contextmanager
def _as_it_was(model: PreTrainedModel) -> Iterator[None]:
    """Give a model back its configuration, and its modules their forwards: what optimum-intel leaves on GPT-Neo never
    ends.
    """
    settings = dict(vars(model.config))
    forwards = {module: vars(module).get("forward") for module in model.modules()}
    try:
        yield
    finally:
        vars(model.config).clear()
        vars(model.config).update(settings)
        for module, forward in forwards.items():
            if forward is None:
                # It is the class's.
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = forward


@contextmanager
def _saved_by(save: Callable[[Any, str, bool], None]) -> Iterator[None]:
    """Let optimum-intel save a graph by a function of ours; it has no hook for that."""
    with quiet_conversion():
        from optimum.exporters.openvino import convert as converter
    theirs = converter.save_model
    converter.save_model = save
    try:
        yield
    finally:
        converter.save_model = theirs


def _save_hollow(weights: Weights, ir: Any, path: str, halve: bool) -> None:
    import openvino

    empty_ir(ir, weights)
    openvino.save_model(ir, path, halve)


def store_ir(
    ir: Any,
    directory: Path,
    storage: Storage,
    *,
    sparsity: Mapping[str, str],
    integers: Mapping[str, Matrix] | None = None,
) -> PackingReport | None:
    """Write a converted IR with its weights in the form asked for.

    Args:
        ir: an `openvino.Model` as `convert` gives it; consumed.
        directory: where it will stand.
        storage: number format and kernel.
        sparsity: written to the model's rt_info under `sparsity`.
        integers: see `ExportSubject.integers`.

    Returns:
        What was packed; None for the stock kernel.

    Raises:
        CompilerMissing: the sparse operators cannot be built here.
        ModelUnsupported: the graph has no place for some of the integers.
    """
    from export.packing.packed_ir import pack_ir

    if integers:
        place_in_ir(ir, integers)
    store: StoreIr = (REMAINDER if integers else storage.weight_format).load_for(NAME)
    stored = store(ir)
    for key, value in sparsity.items():
        stored.ir.set_rt_info(value, ["sparsity", key])
    packing = pack_ir(stored.ir) if storage.sparse_kernel else None
    save_ir(stored.ir, directory / MODEL_XML, fp16=stored.halve_on_save, name="model")
    return packing


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write the Hugging Face tokenizer and its OpenVINO form.

    Raises:
        ModelUnsupported: openvino_tokenizers cannot convert it, or converts it to one that splits text differently.
    """
    with quiet_conversion():
        from openvino_tokenizers import convert_tokenizer

        try:
            # Taking spaces before punctuation away breaks code, and a stream cannot do it.
            encoder, decoder = convert_tokenizer(tokenizer, with_detokenizer=True, clean_up_tokenization_spaces=False)
        # It raises whatever the missing step raises: OVTypeError, NotImplementedError, RuntimeError, KeyError.
        except Exception as error:
            raise ModelUnsupported(
                f"openvino_tokenizers cannot convert this tokenizer: {type(error).__name__}: {error}",
                where=type(tokenizer).__name__,
                remedy="Export without openvino: --formats onnx,hf,peft",
            ) from error
    tokenizer.save_pretrained(str(directory))
    save_ir(encoder, directory / TOKENIZER_XML, fp16=False, name="tokenizer")
    save_ir(decoder, directory / DETOKENIZER_XML, fp16=False, name="detokenizer")
    _check_tokenizer(tokenizer, directory)


def read_tokenizer(directory: Path) -> ConvertedTokenizer:
    """The tokenizer and the detokenizer that `write_tokenizer` wrote, as OpenVINO runs them."""
    # openvino_tokenizers is imported by now, and has told OpenVINO of its operators.
    encoder, decoder = (
        openvino_core().compile_model(directory / name, "CPU") for name in (TOKENIZER_XML, DETOKENIZER_XML)
    )
    return ConvertedTokenizer(
        encode=lambda text: list(encoder([text])["input_ids"][0].tolist()),
        decode=lambda tokens: str(decoder([np.array([tokens], dtype=np.int64)])[0][0]),
    )


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Refuse what is plainly another tokenizer; see `export.verification.tokenizer_check` for the rest."""
    converted = read_tokenizer(directory).encode(TEXT)
    expected = tokenizer(TEXT)["input_ids"]
    if converted != expected:
        place = next(
            (index for index, pair in enumerate(zip(converted, expected, strict=False)) if pair[0] != pair[1]),
            "the end",
        )
        raise ModelUnsupported(
            f"the converted tokenizer differs from the original at token {place} of a test text",
            where=type(tokenizer).__name__,
            remedy="Export without openvino: --formats onnx,hf,peft",
        )


def save_ir(ir: Any, path: Path, *, fp16: bool, name: str) -> None:
    """Save an `openvino.Model` under names that do not depend on what this process converted before."""
    import openvino

    ir.set_friendly_name(name)
    for index, node in enumerate(ir.get_ordered_ops()):
        if NUMBERED_NAME.fullmatch(node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_at_{index}")
        for port, output in enumerate(node.outputs()):
            if any(NUMBERED_NAME.fullmatch(given) for given in output.get_names()):
                output.get_tensor().set_names({f"{node.get_type_name()}_at_{index}_{port}"})
    openvino.save_model(ir, str(path), compress_to_fp16=fp16)


def openvino_logits(
    directory: Path, blocks: Blocks, *, config: dict[str, str], obstacle: str | None = None
) -> LogitsInTurn:
    """Logits of a stateful IR on the CPU, block by block: half of each in one call, the rest token by token.

    Args:
        directory: holds `openvino_model.xml`.
        blocks: inputs.
        config: compile options; `FLOAT32_CPU`, or empty for what a user gets by default.
        obstacle: see `compile_ir`.
    """
    compiled = compile_ir(directory / MODEL_XML, properties=config, preferred=PREFERRED_PROPERTIES, obstacle=obstacle)
    request = compiled.create_infer_request()
    vocabulary = compiled.output("logits").get_partial_shape()[-1].get_length()
    inputs = {name for item in request.model_inputs for name in item.names}
    for block in blocks:
        request.reset_state()
        logits, read = np.empty((len(block), vocabulary), dtype=np.float32), 0
        for feed in cached_calls(block):
            feed["beam_idx"] = np.zeros(1, dtype=np.int32)
            # Views of what the request holds: a copy of each would be as large as a small model.
            output = request.infer({name: feed[name] for name in feed if name in inputs}, share_outputs=True)["logits"]
            logits[read : read + output.shape[1]] = output[0]
            read += output.shape[1]
        yield logits
