"""A model says what its stock file says, whatever instruction set our kernels use and whichever OpenVINO's own products
are limited to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from export.formats.openvino import MODEL_XML, write_openvino
from tests.support.exported_files import stored_as
from tests.support.forked_processes import ForkedProcesses
from tests.support.instruction_sets import KERNELS, available
from tests.support.packed_decoders import SHAPE, seeded_decoder, write_packed
from tests.support.tiny_models import tiny_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it
LIMITS = (None, "AVX512_CORE", "AVX2_VNNI", "AVX2")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """Of the same integers: packed, and stock."""
    model = seeded_decoder(LlamaForCausalLM, LlamaConfig(**SHAPE, tie_word_embeddings=True))
    packed, stock = write_packed(tmp_path_factory.mktemp("packed"), model), tmp_path_factory.mktemp("stock")
    write_openvino(model, tiny_tokenizer(), stock, stored_as("int8"), sparsity={})
    return packed, stock / MODEL_XML


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkedProcesses]:
    with ForkedProcesses("tests.support.model_forms", "openvino", "openvino_tokenizers") as processes:
        yield processes


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("kernels", KERNELS)
def test_every_form_says_what_the_stock_file_says(files, processes, kernels, limit):
    if not available(kernels):
        pytest.skip(f"this processor has no {kernels}")
    environment = {**os.environ, "SHEARLING_KERNEL": kernels}
    if limit is not None:
        environment["ONEDNN_MAX_CPU_ISA"] = limit
    code = "import sys; from tests.support.model_forms import compare_forms; compare_forms(*sys.argv[1:])"
    best = next(filter(available, KERNELS))
    done = processes.run(code, *files, "measured" if kernels == best else "", environment=environment)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-3000:]}"
