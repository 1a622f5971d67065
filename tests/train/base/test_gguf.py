"""GGUF files of every architecture that can be pruned: weights, sizes, rotary scaling and tokenizers as they were."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers

from shearling.errors import ModelUnsupported
from shearling.model.checkpoint import load_model, load_tokenizer
from shearling.model.end_tokens import end_tokens_of
from shearling.model.experts import has_separate_experts
from shearling.model.gguf_header import GgufHeader, read_header
from shearling.model.gguf_tokenizer import rebuild_tokenizer
from shearling.recipe.model import ModelSection
from shearling.strict_json import read_json
from tests.support.gguf_files import write_any_gguf
from tests.support.tiny_models import (
    CORPUS,
    FAMILIES,
    MIXTURES,
    VOCABULARY,
    build_tiny,
    tiny_tokenizer,
)
from train.base.artefact import import_base
from train.preflight import check_prunable, find_model

TOKENS = torch.randint(3, VOCABULARY, (2, 17), generator=torch.Generator().manual_seed(1))
RMS, LAYER = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"


@dataclass(frozen=True)
class Case:
    """An architecture: of which tiny model, its name in transformers, and what else its files say."""

    family: str
    model_type: str
    fields: dict[str, float] = field(default_factory=dict)


CASES = {
    "llama": Case("llama", "llama", {RMS: 1e-6}),
    "qwen2": Case("qwen2", "qwen2", {RMS: 1e-6}),
    "qwen3": Case("qwen3", "qwen3", {RMS: 1e-6, "attention.key_length": 12}),
    "gemma2": Case("gemma2", "gemma2", {RMS: 1e-6, "attention.key_length": 12, "attention.sliding_window": 16}),
    "gemma3": Case("gemma3", "gemma3_text", {RMS: 1e-6, "attention.key_length": 12, "attention.sliding_window": 16}),
    "qwen2moe": Case(
        "qwen2_moe",
        "qwen2_moe",
        {
            RMS: 1e-6,
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_feed_forward_length": 24,
            "expert_shared_feed_forward_length": 40,
        },
    ),
    "qwen3moe": Case(
        "qwen3_moe",
        "qwen3_moe",
        {
            RMS: 1e-6,
            "expert_count": 6,
            "expert_used_count": 2,
            "expert_feed_forward_length": 24,
            "attention.key_length": 12,
        },
    ),
    "starcoder2": Case("starcoder2", "starcoder2", {LAYER: 1e-5}),
    "stablelm": Case("stablelm", "stablelm", {LAYER: 1e-5}),
    "phi3": Case("phi3", "phi3", {RMS: 1e-5}),
}


def tiny(family: str) -> transformers.PreTrainedModel:
    shape = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 72,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.1,
        "tie_word_embeddings": False,
    }
    if family == "starcoder2":
        config = transformers.Starcoder2Config(**shape, use_bias=True, sliding_window=None)
        return build_tiny(transformers.Starcoder2ForCausalLM, config)
    if family == "stablelm":
        # Heads of 16, of which a quarter is turned.
        return build_tiny(transformers.StableLmForCausalLM, transformers.StableLmConfig(**{**shape, "hidden_size": 64}))
    if family == "gemma3":
        # Which layers see all positions is not in the file: every sixth.
        config = transformers.Gemma3TextConfig(
            **{**shape, "num_hidden_layers": 7, "tie_word_embeddings": True},
            head_dim=12,
            sliding_window=16,
            query_pre_attn_scalar=12,
        )
        return build_tiny(transformers.Gemma3ForCausalLM, config)
    return {**FAMILIES, **MIXTURES}[family]()


def write(tmp_path, architecture, **options):
    case = CASES[architecture]
    fields = {f"{architecture}.{key}": value for key, value in case.fields.items()}
    fields |= {f"{architecture}.{key}": value for key, value in options.pop("more", {}).items()}
    return write_any_gguf(
        tmp_path / "model.gguf", architecture, tiny(case.family), tiny_tokenizer(), fields=fields, **options
    )


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("architecture", CASES)
def test_the_model_is_what_the_file_was_made_of(architecture, tmp_path):
    case, path = CASES[architecture], write(tmp_path, architecture)
    original = tiny(case.family)
    source = find_model(ModelSection(path=path, model_id="x"))
    assert source.model_type == case.model_type
    check_prunable(source)
    base = import_base(path, tmp_path / "base", model_id="tiny/gguf")
    assert base.manifest.details["model_type"] == case.model_type
    assert base.manifest.details["tie_word_embeddings"] == original.config.tie_word_embeddings
    model = load_model(base.path)
    assert has_separate_experts(model) == (case.family in MIXTURES)
    assert torch.allclose(logits(model), logits(original), atol=2e-4)


@pytest.mark.parametrize(
    ("architecture", "more", "tensors", "match"),
    [
        ("llama", {"expert_count": 8}, {}, "a mixture of 8 experts"),
        ("llama", {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, {}, "stretched by 'yarn'"),
        ("llama", {}, {"rope_factors_long.weight": np.ones(6, np.float32)}, "stretched by 'longrope'"),
        ("llama", {}, {"rope_freqs.weight": np.full(6, 3.0, np.float32)}, "not those of Llama 3"),
    ],
)
def test_what_the_reader_would_lose_is_refused_before_any_work(architecture, more, tensors, match, tmp_path):
    path = write(tmp_path, architecture, more=more, tensors=tensors)
    with pytest.raises(ModelUnsupported, match=match) as caught:
        find_model(ModelSection(path=path, model_id="x"))
    assert caught.value.exit_code == 3
    assert "Hugging Face directory" in caught.value.remedy


def test_tensors_without_a_place_are_refused(tmp_path):
    path = write(tmp_path, "llama", tensors={"blk.0.attn_q.bias": np.ones(48, np.float32)})
    with pytest.raises(ModelUnsupported, match=r"no place for 1 of its tensors, the first is blk\.0\.attn_q\.bias"):
        import_base(path, tmp_path / "base", model_id="x")


@pytest.mark.parametrize(
    ("architecture", "match"),
    [
        ("t5", "'t5' is no decoder whose layers attend"),
        ("mamba", "'mamba' is no decoder whose layers attend"),
        ("mystery", "cannot read a GGUF of architecture 'mystery'"),
    ],
)
def test_architectures_out_of_reach_are_refused_by_their_metadata(architecture, match, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", architecture)
    writer.add_block_count(2)
    writer.add_embedding_length(48)
    writer.add_head_count(4)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("token_embd.weight", np.ones((2, 48), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = ModelSection(path=tmp_path / "model.gguf", model_id="x")
    # The first two are known to the reader.
    with pytest.raises(ModelUnsupported, match=match):
        check_prunable(find_model(source))


def test_rotary_scaling_is_kept(tmp_path):
    path = write(tmp_path, "llama", more={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0})
    config = load_model(import_base(path, tmp_path / "linear", model_id="x").path).config
    assert config.rope_parameters == {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}


def test_the_frequencies_of_llama_3_are_recognised(tmp_path):
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=2, rope_parameters={"rope_theta": 500000.0, **scaling}
    )
    stretched, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500000.0 ** -(torch.arange(0, 32, 2) / 32)
    model = build_tiny(
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(
            hidden_size=64,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_hidden_layers=2,
            intermediate_size=72,
            vocab_size=VOCABULARY,
            max_position_embeddings=16384,
            rope_parameters={"rope_theta": 500000.0, **scaling},
        ),
    )
    path = write_any_gguf(
        tmp_path / "llama3.gguf",
        "llama",
        model,
        tiny_tokenizer(),
        fields={"llama.attention.layer_norm_rms_epsilon": 1e-6, "llama.rope.freq_base": 500000.0},
        tensors={"rope_freqs.weight": (plain / stretched).numpy().astype(np.float32)},
    )
    found = load_model(import_base(path, tmp_path / "base", model_id="x").path)
    assert found.config.rope_parameters == {"rope_theta": 500000.0, **scaling}
    assert torch.allclose(logits(found), logits(model), atol=1e-4)


@pytest.mark.parametrize(("architecture", "layers"), [("llama", None), ("gemma3", "full_attention")])
def test_the_base_of_the_rotary_embedding_is_kept(architecture, layers, tmp_path):
    path = write(tmp_path, architecture, more={"rope.freq_base": 5000.0})
    found = find_model(ModelSection(path=path, model_id="x")).config.rope_parameters
    assert (found if layers is None else found[layers])["rope_theta"] == 5000.0


def test_special_tokens_are_those_of_the_file(tmp_path):
    config = find_model(ModelSection(path=write(tmp_path, "phi3"), model_id="x")).config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, 2, 0)


def test_the_end_of_a_turn_is_kept(tmp_path):
    case = CASES["llama"]
    path = write_any_gguf(
        tmp_path / "turns.gguf",
        "llama",
        tiny(case.family),
        tiny_tokenizer(),
        fields={"llama.attention.layer_norm_rms_epsilon": 1e-6, "tokenizer.ggml.eot_token_id": 1},
    )
    assert read_header(path).end_ids == (1, 2)
    assert end_tokens_of(rebuild_tokenizer(read_header(path))) == {1, 2}
    base = import_base(path, tmp_path / "base", model_id="x")
    assert read_json(base.path / "generation_config.json")["eos_token_id"] == [1, 2]


def sentencepiece_like(prefix: bool) -> GgufHeader:
    """What a file says of a tokenizer of pieces and scores."""
    from tokenizers import Tokenizer, models, normalizers, trainers

    spaces = [normalizers.Replace(" ", "\u2581")]
    if prefix:
        spaces.insert(0, normalizers.Prepend("\u2581"))
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trained.normalizer = normalizers.Sequence(spaces)
    trained.train_from_iterator(
        CORPUS * 4, trainers.BpeTrainer(vocab_size=520, special_tokens=specials, show_progress=False)
    )
    names = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(names) - 259)]
    return GgufHeader(
        path=Path("tiny.gguf"),
        fields={
            "general.architecture": "llama",
            "llama.context_length": 64,
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": names,
            "tokenizer.ggml.scores": [-float(index) for index in range(len(names))],
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.add_space_prefix": prefix,
        },
    )


def pieces_of(text: str, header: GgufHeader) -> list[int]:
    """SentencePiece's BPE by brute force: the two neighbours that make the best piece are joined, until none do."""
    tokens, kinds = header.fields["tokenizer.ggml.tokens"], header.fields["tokenizer.ggml.token_type"]
    score = {token: -index for index, token in enumerate(tokens) if kinds[index] == 1}
    symbols = list(("\u2581" if header.fields["tokenizer.ggml.add_space_prefix"] else "") + text.replace(" ", "\u2581"))
    while True:
        joined = [(score.get(a + b, -np.inf), -at) for at, (a, b) in enumerate(pairwise(symbols))]
        best, at = max(joined, default=(-np.inf, 0))
        if best == -np.inf:
            break
        symbols[-at : 2 - at] = ["".join(symbols[-at : 2 - at])]
    ids = []
    for symbol in symbols:
        ids += [tokens.index(symbol)] if symbol in score else [3 + byte for byte in symbol.encode()]
    return ids


@pytest.mark.parametrize("prefix", [True, False])
def test_a_tokenizer_of_pieces_and_scores_is_rebuilt(prefix, tmp_path):
    header = sentencepiece_like(prefix)
    rebuilt = rebuild_tokenizer(header)
    for text in (*CORPUS, "  two  spaces", "unseen: \u00e4\u4e16 \U0001f642", "line\nline"):
        assert rebuilt.encode(text) == [1, *pieces_of(text, header)]
        assert rebuilt.decode(rebuilt.encode(text), skip_special_tokens=True) == text
    rebuilt.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).encode(CORPUS[0]) == rebuilt.encode(CORPUS[0])


def test_a_tokenizer_of_another_kind_is_refused():
    header = sentencepiece_like(True)
    with pytest.raises(ModelUnsupported, match="of type 't5'"):
        rebuild_tokenizer(GgufHeader(header.path, {**header.fields, "tokenizer.ggml.model": "t5"}))
