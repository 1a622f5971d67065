"""What loading a packed model costs in memory: the copy that the kernels read, and nothing beside it for long."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import opset13 as op
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.sparse_kernel import packed_product
from export.formats.openvino import MODEL_XML, write_openvino
from shearling.kernel.library import pack_matrix
from shearling.kernel.openvino_extension import node_factory
from shearling.kernel.packed_format import Encoding, ValueType
from tests.support.documents import ROOT
from tests.support.exported_files import stored_as
from tests.support.matrices import random_matrix
from tests.support.tiny_models import VOCABULARY as VOCABULARY_OF_TOKENIZER
from tests.support.tiny_models import tiny_tokenizer

pytestmark = [
    pytest.mark.alone,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it

SIZE, LAYERS, VOCABULARY = 2048, 32, 40000
DECODERS = {
    "small": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1},
    "large": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4},
}
LOAD = """
import json, sys
from pathlib import Path
import numpy as np
from serve.visitor.own_process import memory_bytes, peak_memory_bytes
from shearling.kernel.openvino_extension import core_for

def load(path):
    core = core_for(path)
    compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    port = compiled.input(0)
    widths = [size.get_length() for size in list(port.partial_shape)[2:]]
    compiled(np.zeros((1, 1, *widths), port.get_element_type().to_dtype()))
    return compiled

warm = load(Path(sys.argv[1]))
before = memory_bytes()
Path("/proc/self/clear_refs").write_text("5")  # the highest resident memory counts from here
loaded = load(Path(sys.argv[2]))
print(json.dumps({"peak": peak_memory_bytes() - before, "kept": memory_bytes() - before}))
"""


LOAD_PIPELINE = """
import json, sys
from pathlib import Path
import openvino_genai
from serve.visitor.own_process import memory_bytes, peak_memory_bytes
from shearling.kernel.openvino_extension import load_packed, required_extensions

def load(xml, **properties):
    extensions = [str(library) for library in required_extensions(xml)]
    loaded = load_packed(xml, properties={"PACKED": "always", **properties, "extensions": extensions})
    pipeline = loaded.open_pipeline("CPU")
    pipeline.generate("a", openvino_genai.GenerationConfig(max_new_tokens=2, ignore_eos=True))
    return pipeline, loaded.attention

properties = json.loads(sys.argv[3])
warm = load(Path(sys.argv[1]), **properties)
before = memory_bytes()
Path("/proc/self/clear_refs").write_text("5")  # the highest resident memory counts from here
loaded, attention = load(Path(sys.argv[2]), **properties)
print(json.dumps({"peak": peak_memory_bytes() - before, "kept": memory_bytes() - before, "fused": attention is None}))
"""
LOAD_BOTH = (
    LOAD_PIPELINE.partition("warm =")[0]
    + """
stock = {**properties, "ATTENTION_BACKEND": "SDPA"}
warm = [load(Path(sys.argv[1]), **properties) for properties in (stock, {})]
first = load(Path(sys.argv[2]), **stock)
before = memory_bytes()
second = load(Path(sys.argv[2]), **properties)
print(json.dumps({"kept": memory_bytes() - before, "fused": [item[1] is None for item in (first, second)]}))
"""
)
PROMPT = """
import json
import numpy as np
from serve.visitor.own_process import memory_bytes
from shearling.kernel.library import multiply, pack_matrix
from shearling.kernel.packed_format import ValueType
from tests.support.matrices import random_matrix

packed = pack_matrix(random_matrix(ValueType.INT8, 256, 4096))
row, prompt = np.ones((1, 4096), np.float32), np.ones((4096, 4096), np.float32)
multiply(packed, row)
before = memory_bytes()
multiply(packed, prompt)
after = memory_bytes()
for _ in range(64):
    multiply(packed, row)
print(json.dumps({"prompt": after - before, "tokens": memory_bytes() - before}))
"""


def save_decoder(directory: Path, *, two_of_four: bool = False, **sizes: int) -> tuple[Path, int]:
    """A packed decoder with its tokenizer, and the bytes of its weights, half of them zeros."""
    model = LlamaForCausalLM(LlamaConfig(num_attention_heads=8, vocab_size=VOCABULARY_OF_TOKENIZER, **sizes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.weight"):
                pruned = slice(None, None, 2) if two_of_four else slice(parameter.shape[1] // 2)
                parameter[:, pruned] = 0
            elif parameter.ndim == 1:
                parameter.add_(0.1)  # a norm of ones would be left out of the graph
    write_openvino(model, tiny_tokenizer(), directory, stored_as("int8", kernel="sparse"), sparsity={})
    xml = directory / MODEL_XML
    return xml, xml.with_suffix(".bin").stat().st_size


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, int]]:
    """What `save_decoder` returns, for a size of `DECODERS`; written when it is first asked for, and only read."""
    directory = tmp_path_factory.mktemp("decoders")

    @functools.cache
    def written(size: str, two_of_four: bool) -> tuple[Path, int]:
        name = f"{size}-two-of-four" if two_of_four else size
        return save_decoder(directory / name, two_of_four=two_of_four, **DECODERS[size])

    def decoder(size: str, *, two_of_four: bool = False) -> tuple[Path, int]:
        return written(size, two_of_four)

    return decoder


def save_chain(path: Path, size: int, layers: int) -> int:
    """A model of square packed layers, each with a constant of its own; bytes of its weights."""
    packed = pack_matrix(random_matrix(ValueType.INT8, size, size))
    parameter = op.parameter([-1, -1, size], np.float32)
    end = parameter.output(0)
    for layer in range(layers):
        end = packed_product(packed, size, layer)(end)
    ov.save_model(ov.Model([op.result(end)], [parameter]), path, compress_to_fp16=False)
    return path.with_suffix(".bin").stat().st_size


def save_tied(path: Path, size: int, rows: int) -> int:
    """An embedding and its head, of one constant; bytes of its weights."""
    parameter = op.parameter([-1, -1], np.int64)
    weights = op.constant(pack_matrix(random_matrix(ValueType.INT8, rows, size), Encoding.DENSE)).output(0)
    attributes = {"rows": rows, "columns": size, "precision": "auto", "format_version": 1}
    embedded = node_factory().create("SparseEmbedding", [parameter.output(0), weights], attributes)
    head = node_factory().create("SparseHead", [embedded.output(0), weights], attributes)
    ov.save_model(ov.Model([op.result(head.output(0))], [parameter]), path, compress_to_fp16=False)
    return path.with_suffix(".bin").stat().st_size


def added_bytes(directory: Path, save: Callable[[Path, int, int], int], count: int) -> tuple[dict[str, int], int]:
    """What loading a model adds to the memory of a process at most and for good, and the bytes of its weights."""
    save(directory / "small.xml", 64, 1)
    size = save(directory / "model.xml", SIZE, count)
    assert size > 64 << 20
    command = [sys.executable, "-c", LOAD, str(directory / "small.xml"), str(directory / "model.xml")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return json.loads(done.stdout), size


def test_loading_takes_at_most_a_fifth_more_than_the_file(tmp_path):
    added, size = added_bytes(tmp_path, save_chain, LAYERS)
    assert added["peak"] <= 1.2 * size


def test_an_embedding_and_its_head_keep_one_copy(tmp_path):
    added, size = added_bytes(tmp_path, save_tied, VOCABULARY)
    assert 0.8 * size <= added["kept"] <= 1.2 * size


def test_a_decoder_with_attention_in_its_layers_takes_no_more_than_the_plain_one(decoders):
    small, _ = decoders("small")
    large, size = decoders("large")
    assert size > 32 << 20
    added = []
    for properties in ({"ATTENTION_BACKEND": "SDPA"}, {}):
        command = [sys.executable, "-c", LOAD_PIPELINE, str(small), str(large), json.dumps(properties)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        added.append(json.loads(done.stdout))
    plain, fused = added
    assert (plain["fused"], fused["fused"]) == (False, True)
    assert fused["peak"] <= plain["peak"] + 0.1 * size
    assert fused["peak"] <= 1.3 * size


def test_weights_with_their_zeros_take_their_own_size_alone(decoders):
    """Of int8, half of them zeros: 8 bits instead of 5."""
    small, _ = decoders("small")
    large, size = decoders("large")
    command = [sys.executable, "-c", LOAD_PIPELINE, str(small), str(large), json.dumps({"PACKED": "expanded"})]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    added = json.loads(done.stdout)
    assert 1.4 * size <= added["kept"] <= 1.95 * size
    assert added["peak"] <= 2.6 * size


def test_weights_of_two_in_four_columns_take_no_more_but_for_a_layer_on_the_way(decoders):
    """Kernels for AVX2 hold them in a form of their own."""
    small, _ = decoders("small")
    large, size = decoders("large", two_of_four=True)
    command = [sys.executable, "-c", LOAD_PIPELINE, str(small), str(large), "{}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    added = json.loads(done.stdout)
    assert added["kept"] <= 1.3 * size
    assert added["peak"] <= 1.7 * size


@pytest.mark.parametrize(("packed", "two_of_four"), [("always", False), ("always", True), ("expanded", False)])
def test_two_pipelines_of_one_model_share_its_weights(decoders, packed, two_of_four):
    small, _ = decoders("small")
    large, size = decoders("large", two_of_four=two_of_four)
    command = [sys.executable, "-c", LOAD_BOTH, str(small), str(large), json.dumps({"PACKED": packed})]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    added = json.loads(done.stdout)
    assert added["fused"] == [False, True]
    assert added["kept"] <= 0.25 * size


def test_what_a_long_prompt_took_is_given_back():
    done = subprocess.run(
        [sys.executable, "-c", PROMPT],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    added = json.loads(done.stdout)
    assert added["prompt"] > 16 << 20
    assert added["tokens"] < added["prompt"] / 4
