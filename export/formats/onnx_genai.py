"""ONNX for ONNX Runtime GenAI: the same graph runs in plain ONNX Runtime.

The graph is written from the merged model in memory rather than by GenAI's model builder (docs/onnx-genai.md says
why), so that it holds the integers, the names and the layer widths that the other formats hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from export.formats.export_format import REMAINDER, ExportSubject, Storage, UsageFacts
from export.formats.onnx import MODEL_ONNX, OnnxDecoder, check_external_data, save_beside
from export.fused_graph.decoder import check_layers, check_model_type, read_decoder
from export.fused_graph.fuse import fused_graph
from export.fused_graph.genai_config import GENAI_CONFIG, genai_config
from export.fused_graph.rounding import FORMAT, round_decoder
from export.packing.packed_onnx import pack_graph
from export.packing.packing_report import PackingReport
from export.quantization.integer_graph import place_in_graph
from shearling.strict_json import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from shearling.kernel.packed_format import Matrix

GENERATE = """\
tokenizer, params = og.Tokenizer(model), og.GeneratorParams(model)
tokenizer.update_options(add_special_tokens="true")  # "false" for what a chat template wrote
params.set_search_options(max_length=200)
generator = og.Generator(model, params)
generator.append_tokens(tokenizer.encode("Hello"))
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))"""

USAGE = f"""\
import onnxruntime_genai as og  # pip install 'onnxruntime-genai>=0.18,<0.19'

# or: python -m serve generate . --format onnx-genai --prompt Hello
model = og.Model("onnx-genai")
{GENERATE}"""

SPARSE_USAGE = f"""\
# The wheel shearling-runtime needs neither Shearling nor a compiler; `make wheels` in a checkout builds it.
# or, with Shearling: python -m serve generate . --format onnx-genai --prompt Hello
import onnxruntime_genai as og  # pip install 'onnxruntime-genai>=0.18,<0.19'
import shearling_runtime

model = shearling_runtime.load_genai_model("onnx-genai")
{GENERATE}"""


class OnnxGenAIDecoder(OnnxDecoder):
    """A decoder of fused operators, with what GenAI reads beside it."""

    name: ClassVar[str] = FORMAT
    fused: ClassVar[bool] = True

    def check(self, model_type: str, storage: Storage) -> None:
        """See `FormatWriter`."""
        check_model_type(model_type)
        super().check(model_type, storage)

    def check_config(self, config: Mapping[str, Any], *, where: Path) -> None:
        """See `FormatWriter`."""
        super().check_config(config, where=where)
        check_layers(config, where=where)

    def write(self, subject: ExportSubject, directory: Path, storage: Storage) -> PackingReport | None:
        """See `FormatWriter`."""
        return write_onnx_genai(subject.model, subject.tokenizer, directory, storage, integers=subject.integers)

    def usage(self, facts: UsageFacts) -> str | None:
        """See `FormatWriter`."""
        return SPARSE_USAGE if facts.packed else USAGE


def write_onnx_genai(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    storage: Storage,
    *,
    integers: Mapping[str, Matrix] | None = None,
) -> PackingReport | None:
    """Export a decoder to `directory`, for `onnxruntime_genai.Model`.

    For inputs and outputs see `export.fused_graph.fuse.fused_graph`.

    Args:
        model: float32, eval mode.
        tokenizer: saved in the Hugging Face format.
        directory: created.
        storage: number format and kernel. fp16 computes and caches in float16, for GPUs; all others in float32.
        integers: see `ExportSubject.integers`.

    Returns:
        What was packed; None for the stock kernel.

    Raises:
        ModelUnsupported: the fused operators do not compute what this model does.
        ArtefactCorrupt: the written files do not hold all weights.
    """
    import onnx_ir

    number_format = storage.weight_format
    decoder = read_decoder(model)
    graph = fused_graph(decoder, np.float16 if number_format.name == "fp16" else np.float32)
    if number_format.integers:
        layers = REMAINDER if integers else number_format
        place_in_graph(graph, round_decoder(decoder, integers or {}, layers=layers, others=REMAINDER))
    packing = pack_graph(graph) if storage.sparse_kernel else None
    directory.mkdir(parents=True, exist_ok=True)
    onnx_ir.save(graph, directory / MODEL_ONNX, external_data=f"{MODEL_ONNX}.data")
    check_external_data(directory / MODEL_ONNX)
    save_beside(model, tokenizer, directory)
    write_json(directory / GENAI_CONFIG, genai_config(decoder, model, tokenizer, filename=MODEL_ONNX))
    return packing
