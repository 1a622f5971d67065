"""Width groups found from the data flow, for every family and for what cannot be cut (issue: no lists of names)."""

import copy

import pytest
import torch
from transformers import (
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    GPTBigCodeConfig,
    MixtralConfig,
    ModernBertConfig,
    OPTConfig,
    RobertaConfig,
)

from shearling.errors import ModelUnsupported
from shearling.model.width_tracing import find_structure
from tests.support.tiny_models import ENCODERS, FAMILIES, RARER

CLASSIFIER = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 72,
    "vocab_size": 100,
}
SPECIAL_TOKENS = {f"{name}_token_id": number for number, name in enumerate(("pad", "bos", "eos", "cls", "sep"))}
LLAMA_LIKE = ("llama", "llama_tied_gqa", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")


@pytest.mark.parametrize("family", LLAMA_LIKE)
def test_llama_like_decoders_have_both_widths(family):
    config = FAMILIES[family]().config
    structure = find_structure(config)
    assert not structure.uncuttable
    feed_forward, attention = structure.require("feed_forward")[0], structure.require("attention")[0]
    assert (feed_forward.producers, feed_forward.consumer) == (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
    assert feed_forward.width == config.intermediate_size
    assert attention.consumer == "self_attn.o_proj"
    assert {*attention.producers, *attention.grouped} == {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}
    assert attention.group == config.num_attention_heads // config.num_key_value_heads
    assert attention.width == config.num_attention_heads * attention.head_dim
    assert len(structure.require("attention")) == config.num_hidden_layers


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize(
    ("config", "producers", "attention"),
    [
        (FAMILIES["bloom"]().config, ("mlp.dense_h_to_4h",), "query_key_value.*fused"),
        (RARER["falcon"]().config, ("mlp.dense_h_to_4h",), "query_key_value.*fused"),
        (
            GPTBigCodeConfig(vocab_size=100, n_embd=48, n_layer=2, n_head=4, multi_query=False),
            ("mlp.c_fc",),
            "c_attn.*fused",
        ),
        (RARER["stablelm"]().config, ("mlp.gate_proj", "mlp.up_proj"), "o_proj.*its code fixes the width"),
    ],
    ids=["bloom", "falcon", "gpt2", "stablelm"],
)
def test_some_keep_the_width_of_their_attention(config, producers, attention):
    structure = find_structure(config)
    assert structure.require("feed_forward")[0].producers == producers
    with pytest.raises(ModelUnsupported, match=f"{attention}.*feed_forward can be cut") as caught:
        structure.require("attention")
    assert caught.value.exit_code == 3


def test_fused_feed_forwards_are_named():
    phi3 = find_structure(FAMILIES["phi3"]().config)
    with pytest.raises(ModelUnsupported, match=r"mlp\.gate_up_proj: .*split or mixed"):
        phi3.require("feed_forward")


@pytest.mark.parametrize(
    ("config", "producers"),
    [
        (BertConfig(architectures=["BertForSequenceClassification"], **CLASSIFIER), "attention.self.query"),
        (RobertaConfig(architectures=["RobertaForSequenceClassification"], **CLASSIFIER), "attention.self.query"),
        (
            DistilBertConfig(
                architectures=["DistilBertForSequenceClassification"],
                dim=48,
                n_layers=2,
                n_heads=4,
                hidden_dim=72,
                vocab_size=100,
            ),
            "attention.q_lin",
        ),
    ],
    ids=["bert", "roberta", "distilbert"],
)
def test_encoders_have_both_widths(config, producers):
    attention = find_structure(config).require("attention")[0]
    assert attention.producers[0] == producers
    assert (attention.width, attention.head_dim, attention.group) == (48, 12, 1)
    assert find_structure(config).require("feed_forward")[0].width == 72


def test_a_size_that_the_code_fixes_is_found_before_training():
    config = OPTConfig(
        hidden_size=48,
        word_embed_proj_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=72,
        vocab_size=100,
        max_position_embeddings=64,
    )
    structure = find_structure(config)
    assert structure.require("feed_forward")[0].producers == ("fc1",)
    with pytest.raises(ModelUnsupported, match=r"self_attn\.out_proj: .*its code fixes the width"):
        structure.require("attention")


# DeBERTa's module in transformers compiles functions when it is imported.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("family", ["deberta", "deberta-v2"])
def test_a_forward_that_looks_at_numbers_of_its_own_is_refused(family):
    config = copy.deepcopy(ENCODERS[family])
    config.architectures = ["DebertaForSequenceClassification"]
    with pytest.raises(ModelUnsupported, match="cannot be followed"):
        find_structure(config)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_heads_that_the_code_counts_are_not_cut():
    """It splits whatever width there is into as many heads: narrower ones, not fewer."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    names = ["DebertaV2ForSequenceClassification"]
    config = DebertaV2Config(architectures=names, vocab_size=90, pad_token_id=0, relative_attention=False, **sizes)
    structure = find_structure(config)
    assert set(structure.blocks) == {"feed_forward"}
    with pytest.raises(ModelUnsupported, match="narrower output into heads of 4, not of 16") as caught:
        structure.require("attention")
    assert caught.value.where == "deberta.encoder.layer.0.attention.self.query_proj"


# Building it imports parts of torch that compile functions when they are imported.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_a_model_whose_first_weights_depend_on_numbers_is_refused():
    """ModernBERT draws from a truncated normal distribution, and checks that what it drew lies inside."""
    config = ModernBertConfig(architectures=["ModernBertForSequenceClassification"], **(CLASSIFIER | SPECIAL_TOKENS))
    with pytest.raises(ModelUnsupported, match=r"ModernBertForSequenceClassification: it cannot be built"):
        find_structure(config)


def test_an_unknown_structure_names_the_module():
    config = MixtralConfig(
        hidden_size=48,
        intermediate_size=72,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
    )
    with pytest.raises(ModelUnsupported, match=r"MixtralForCausalLM|model\.layers\.0"):
        find_structure(config).require("feed_forward")


def test_following_leaves_no_mode_behind():
    find_structure(FAMILIES["llama"]().config)
    assert type(torch.ones(1)) is torch.Tensor
    assert torch.ones(2).sum().item() == 2.0
