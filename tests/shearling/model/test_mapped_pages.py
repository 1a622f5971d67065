"""Pages of mapped checkpoints given back: nothing is lost, and what was changed stays."""

import mmap
import re
from pathlib import Path

import pytest
import torch

from shearling.model.checkpoint import load_model
from shearling.model.mapped_pages import give_back_pages, give_back_pages_of, pages_given_back
from shearling.model.weight_shards import StoredTensor, StoredWeights, writing_weights
from tests.support.tiny_models import save_tiny

SIZE = 2**22


def mapped_bytes(name):
    """Resident pages of mappings of files with this in their path."""
    found, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"^[0-9a-f]+-[0-9a-f]+ ", line):
            found = name in line
        elif found and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


@pytest.fixture
def weights(tmp_path):
    directory = tmp_path / "paged-weights"
    directory.mkdir()
    with writing_weights(directory, {"w": StoredTensor("float32", (SIZE,))}) as writer:
        writer.write("w", torch.arange(SIZE, dtype=torch.float32))
    return StoredWeights(directory).read("w")


def test_pages_go_and_come_back(weights):
    total = float(weights.double().sum())
    assert mapped_bytes("paged-weights") >= weights.nbytes
    give_back_pages()
    assert mapped_bytes("paged-weights") == 0
    assert float(weights.double().sum()) == total == SIZE * (SIZE - 1) / 2


def test_the_pages_of_one_tensor_go_and_memory_of_our_own_stays(weights):
    total, own = float(weights.double().sum()), weights.clone()
    for tensor in (weights, own):
        give_back_pages_of(tensor)
    assert mapped_bytes("paged-weights") <= 2 * mmap.PAGESIZE
    assert float(weights.double().sum()) == float(own.double().sum()) == total


def test_what_was_changed_stays(weights):
    with torch.no_grad():
        weights[5] = -1.0
    give_back_pages()
    assert weights[5] == -1
    assert weights[6] == 6


def test_readers_go_on_while_pages_are_given_back(weights):
    with pages_given_back():
        for _ in range(100):
            assert float(weights[-1]) == SIZE - 1
            assert bool((weights[::1024] == torch.arange(0, SIZE, 1024)).all())
    assert mapped_bytes("paged-weights") == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_in_the_type_of_its_files_is_a_view_of_them(tmp_path, dtype):
    source = save_tiny("llama_tied_gqa", tmp_path / "mapped-model")
    model = load_model(source)
    if dtype != torch.float32:
        source = tmp_path / "mapped-halved"
        model.to(dtype).save_pretrained(str(source))
    mapped = load_model(source, dtype=None)
    assert {parameter.dtype for parameter in mapped.parameters()} == {dtype}
    assert mapped.config.dtype == dtype
    assert mapped.lm_head.weight is mapped.model.embed_tokens.weight
    for name, parameter in model.named_parameters():
        assert torch.equal(mapped.get_parameter(name), parameter)
    assert mapped_bytes(source.name) > 0
