"""Models of a given Llama shape, random weights, dense and pruned: the decode tables of docs/results/decoding.md.

    python -m benchmarks.llama_shape --output runs/shape [--layers 16 --hidden 2048 --feed-forward 8192] [--sparsity
    0,0.5,0.7,2:4] [--group-size 32 --all-layers] [--peers]

Writes OUT/dense-WEIGHTS (what OpenVINO runs today; kept if it is there) and OUT/sparse-WEIGHTS-PERCENT, for 2:4
OUT/sparse-WEIGHTS-2-4, or OUT/packed-WEIGHTS where nothing is pruned, for bf16, int8 and int4: whole OpenVINO
directories with a tokenizer, for `python -m serve bench`. A directory is for one shape, and one kind of int4. The speed
of a decoder does not depend on what its weights say, so random ones serve; the smallest in magnitude of each row, or of
every four, are pruned after quantization, as magnitude pruning before it would. Dense files are left unpruned: stock
runtimes read a zero like any number, and take the same time. Scales of packed int4 are such as the export's rounding on
text leaves, which the packed form stores in bytes. With --peers the same dense model stands in OUT/model, for
`python -m benchmarks.peers gguf OUT/model`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.command import command
from benchmarks.kept_files import keep_settings, whole_directory
from export.formats.export_format import Storage
from export.formats.openvino import MODEL_XML, convert, decoder_conversion, save_ir, write_tokenizer
from export.number_formats.int4 import GROUP, quantize_groups
from export.packing.linear_graph import find_products
from export.packing.packed_ir import pack_ir
from export.packing.stored_weight import make_constant, read_values
from shearling.console import log
from shearling.errors import UsageError
from shearling.model.checkpoint import save_model
from shearling.quantization.rounding import in_bytes
from shearling.registry.number_formats import NUMBER_FORMATS
from shearling.registry.pruning_patterns import PRUNING_PATTERNS
from tests.support.tiny_models import tiny_tokenizer
from train.sparsity.pattern import Pattern, Unstructured, make_pattern

WEIGHT_FORMATS = tuple(entry.name for entry in NUMBER_FORMATS if entry.packable)
SHAPE = {"layers": 16, "hidden": 2048, "feed_forward": 8192, "heads": 32, "kv_heads": 8, "vocabulary": 32000}


@command
def main(arguments: list[str]) -> int:
    """Write the models that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.llama_shape", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    for name, value in SHAPE.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--weight-format", default=",".join(WEIGHT_FORMATS), help=f"of {', '.join(WEIGHT_FORMATS)}")
    parser.add_argument("--sparsity", default="0.5,0.6,0.7,0.8,0.9", help="shares of zeros, or patterns such as 2:4")
    parser.add_argument("--group-size", type=int, default=GROUP, help="weights of int4 that share a scale")
    parser.add_argument("--all-layers", action="store_true", help="int4 for the embedding and the head, too")
    parser.add_argument("--peers", action="store_true", help="write OUT/model, too")
    options = parser.parse_args(arguments)
    wanted = options.weight_format.split(",")
    settings = {name: getattr(options, name) for name in SHAPE}
    if "int4" in wanted:
        settings |= {"group_size": options.group_size, "all_layers": options.all_layers}
    try:
        keep_settings(options.output, settings)
    except UsageError as error:
        parser.error(str(error))
    missing = [weights for weights in wanted if not (options.output / f"dense-{weights}").is_dir()]
    if missing or options.peers:
        _write_dense(options, missing)
    for weights in wanted:
        for share in filter(None, options.sparsity.split(",")):
            _write_packed(options.output, weights, share)
    return 0


def random_llama(
    *, layers: int, hidden: int, feed_forward: int, heads: int, kv_heads: int, vocabulary: int
) -> LlamaForCausalLM:
    """A Llama decoder of this shape in float32, weights drawn from a fixed seed."""
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Of norms: a product with ones is left out of a graph, and no layer is recognised without it.
            if parameter.ndim == 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def prune_smallest(ir: Any, pattern: Pattern) -> None:
    """Set the smallest weights of every decoder layer to zero, in an IR whose weights are compressed.

    Args:
        ir: bf16, int8 or int4 weights; changed in place.
        pattern: where zeros may stand.
    """
    for product in find_products(ir):
        if ".layers." not in product.path:
            continue
        values = read_values(product.constant)
        rows = values.reshape(product.shape)
        # Without the sign the bits of bf16 are in the order of the magnitudes.
        size = rows & 0x7FFF if product.scale is None else np.abs(rows.astype(np.int16))
        rows[~pattern.keep(torch.from_numpy(size.astype(np.int32))).numpy()] = 0
        pruned = make_constant(values, product.constant.get_element_type())
        pruned.set_friendly_name(product.constant.get_friendly_name())
        for reader in product.constant.output(0).get_target_inputs():
            reader.replace_source_output(pruned.output(0))


def put_scales_in_bytes(ir: Any) -> None:
    """Round the scales of every matrix as `in_bytes` does, in an IR in int4; changed in place."""
    for product in find_products(ir):
        if product.scale is None:
            continue
        scales = np.array(product.scale.data)
        rounded = in_bytes(torch.from_numpy(scales.reshape(len(scales), -1)).float()).numpy()
        constant = openvino.op.Constant(rounded.reshape(scales.shape).astype(scales.dtype))
        constant.set_friendly_name(product.scale.get_friendly_name())
        for reader in product.scale.output(0).get_target_inputs():
            reader.replace_source_output(constant.output(0))


def _write_dense(options: argparse.Namespace, wanted: list[str]) -> None:
    raw: Path = options.output / "raw"
    model = random_llama(**{name: getattr(options, name) for name in SHAPE})
    shutil.rmtree(raw, ignore_errors=True)
    raw.mkdir()
    write_tokenizer(tiny_tokenizer(), raw)
    for weights in wanted:
        number_format = NUMBER_FORMATS.get(weights)
        ir = convert(model, raw, decoder_conversion, Storage(number_format))
        if weights == "int4":
            ir = quantize_groups(ir, group_size=options.group_size, all_layers=options.all_layers)
        else:
            ir = number_format.load_for("openvino")(ir).ir
        _write(ir, raw, options.output / f"dense-{weights}")
    shutil.rmtree(raw)
    if options.peers:
        with whole_directory(options.output / "model") as partial:
            save_model(model.to(torch.bfloat16), tiny_tokenizer(), partial)


def _write_packed(out: Path, weights: str, share: str) -> None:
    pattern = make_pattern(share, ratio=0) if share in PRUNING_PATTERNS.names() else Unstructured(float(share))
    dense = out / f"dense-{weights}"
    ir = openvino.Core().read_model(dense / MODEL_XML)
    if pattern.ratio > 0:
        prune_smallest(ir, pattern)
    if weights == "int4":
        put_scales_in_bytes(ir)
    packing = pack_ir(ir)
    zeros = share.replace(":", "-") if ":" in share else str(round(100 * pattern.ratio))
    _write(ir, dense, out / (f"sparse-{weights}-{zeros}" if pattern.ratio > 0 else f"packed-{weights}"))
    log.print(
        f"{weights}, {pattern.ratio:.0%} zeros: {packing.bytes_before / 1e6:.0f} MB of linears become "
        f"{packing.bytes_after / 1e6:.0f} MB"
    )


def _write(ir: Any, neighbours: Path, directory: Path) -> None:
    with whole_directory(directory) as partial:
        for file in neighbours.iterdir():
            if not file.name.startswith("openvino_model"):
                shutil.copy(file, partial)
        save_ir(ir, partial / MODEL_XML, fp16=False, name="model")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
