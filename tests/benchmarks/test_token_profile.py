"""The profile of a token: nodes that run, whole layers among them, and the bytes that it reads."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.token_profile import main, profile
from serve.runtimes.runtime import RunOptions
from tests.support.packed_decoders import SHAPE, seeded_decoder, write_packed

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def xml(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("profiled") / "openvino"
    directory.mkdir()
    config = LlamaConfig(**SHAPE, tie_word_embeddings=request.param)
    return write_packed(directory, seeded_decoder(LlamaForCausalLM, config))


def test_layers_are_few_nodes_and_all_weights_are_counted(xml):
    options = RunOptions(threads=1)
    fused, apart = (
        profile(f"{xml.parent}{suffix}", options, prompt_tokens=20, tokens=6)
        for suffix in ("", "@ATTENTION_BACKEND=SDPA")
    )
    assert fused.kinds["SparseDecoder"][0] == 2  # the last layer is one of its own
    assert apart.kinds["SparseLayer"][0] == SHAPE["num_hidden_layers"]
    assert [count for kind, (count, _) in apart.kinds.items() if "Attention" in kind] == [SHAPE["num_hidden_layers"]]
    assert fused.nodes < 25 < apart.nodes
    # The file holds the weights, and where nothing is tied an embedding that a token reads one row of.
    file_bytes = xml.with_suffix(".bin").stat().st_size
    table = 0 if "SparseEmbedding" in fused.kinds else SHAPE["vocab_size"] * SHAPE["hidden_size"]
    assert fused.weight_bytes == pytest.approx(file_bytes - table, rel=0.05)
    # Half precision of what is in it, whatever there is room for.
    used = 26 * 2 * 2 * SHAPE["num_hidden_layers"] * SHAPE["num_key_value_heads"] * 16
    assert fused.cache_bytes == used


def test_the_command_prints_two_tables(xml, capsys):
    assert main([str(xml.parent), "--threads", "1", "--prompt-tokens", "8", "--tokens", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith(f"| {xml.parent.name} |")
    assert any("| SparseDecoder | 2 |" in line for line in lines)
    assert main([str(xml.parent / "nothing")]) == 3
