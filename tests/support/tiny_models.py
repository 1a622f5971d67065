"""Tiny random decoders of every supported family, with a real tokenizer: what all tests run on.

Seeded, a few hundred kilobytes each; widths are not powers of two, so that a kernel or a mask that assumes one fails.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    AlbertConfig,
    AutoModelForMaskedLM,
    BertConfig,
    BertModel,
    BloomConfig,
    BloomForCausalLM,
    DebertaConfig,
    DebertaV2Config,
    DistilBertConfig,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GptOssConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    MPNetConfig,
    OlmoeConfig,
    OlmoeForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

from shearling.model.checkpoint import save_model
from shearling.model.layers import find_layers

EOS, PAD, IM_START, UNKNOWN = "<|im_end|>", "<|pad|>", "<|im_start|>", "<|unknown|>"
BEYOND = "<|beyond|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = (
    "The quick brown fox jumps over the lazy dog.",
    "Area man wins award for the best headline of the year, 2024.",
    "Report: nation's models are sparse, small and fast; experts agree.",
    "Is this headline sarcastic? Answer: yes. Is this headline sarcastic? Answer: no.",
    "Scientists discover that 50 % of all weights were never needed.",
)
SPACED = "if it 's 1 , do n't ! x . y ?"
VOCABULARY = 400


@functools.cache
def _trained_tokenizer() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, IM_START, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    text: str = tokenizer.to_str()
    return text


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with eos, pad and a chat template; at most `VOCABULARY` tokens."""
    from tokenizers import Tokenizer

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_tokenizer()), eos_token=EOS, pad_token=PAD
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def longer_tokenizer() -> PreTrainedTokenizerFast:
    """The same, with one token more than the tiny models have embeddings of: `BEYOND`, whose id is `VOCABULARY`."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<|unused {number}|>" for number in range(len(tokenizer), VOCABULARY)])
    tokenizer.add_tokens([BEYOND])
    assert tokenizer.convert_tokens_to_ids(BEYOND) == VOCABULARY
    return tokenizer


def beginning_tokenizer() -> PreTrainedTokenizerFast:
    """The same, but every text begins with a token, as its chat template does by itself."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": IM_START})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{IM_START} $A", special_tokens=[(IM_START, tokenizer.bos_token_id)]
    )
    return tokenizer


def tidying_tokenizer() -> PreTrainedTokenizerFast:
    """As that of Llama 3: transformers and OpenVINO take spaces out of `SPACED` where nobody says otherwise."""
    tokenizer = tiny_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True
    # Libraries of late ask for this as well.
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    return tokenizer


def end_appending_tokenizer() -> PreTrainedTokenizerFast:
    """As some tokenizers of encoder-decoders and chat models: every text ends with the end-of-text token."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    end = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, end)])
    return tokenizer


def word_piece_tokenizer(*, handle_chinese_chars: bool = True) -> PreTrainedTokenizerFast:
    """BERT's kind, of words in lower case and a little Chinese."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(handle_chinese_chars=handle_chinese_chars)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=[PAD, UNKNOWN, EOS], show_progress=False)
    tokenizer.train_from_iterator((*CORPUS, "今天天气很好"), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, unk_token=UNKNOWN)


def _shape(hidden: int, layers: int, heads: int, kv_heads: int, feed_forward: int) -> dict[str, int | None]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": feed_forward,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def build_tiny(model_class: Callable[[PretrainedConfig], PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """A model with weights of its own, the same each time."""
    state = torch.random.get_rng_state()
    torch.manual_seed(20251)
    model = model_class(config).eval()
    with torch.no_grad():
        # Constants hide mistakes: give every norm and bias values of its own.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    torch.random.set_rng_state(state)
    return model.to(torch.float32)


def llama() -> PreTrainedModel:
    """Untied, as many key-value heads as heads."""
    return build_tiny(
        LlamaForCausalLM, LlamaConfig(**_shape(48, 3, 4, 4, 88), tie_word_embeddings=False, initializer_range=0.1)
    )


def llama_tied_gqa() -> PreTrainedModel:
    """Tied embeddings and grouped key-value heads: the shape of SmolLM2."""
    return build_tiny(
        LlamaForCausalLM, LlamaConfig(**_shape(60, 2, 6, 2, 100), tie_word_embeddings=True, initializer_range=0.1)
    )


def wide_model(hidden: int = 64, inner: int = 96, *, tied: bool = True) -> PreTrainedModel:
    """Wide enough for groups of 32, with half of its weights zeros."""
    torch.manual_seed(4)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for linear in find_layers(model).linears().values():
            linear.weight.mul_(torch.rand(linear.weight.shape) > 0.5)
    return model


def mistral() -> PreTrainedModel:
    """With a sliding window shorter than the context."""
    return build_tiny(
        MistralForCausalLM,
        MistralConfig(**_shape(48, 2, 4, 2, 72), sliding_window=16, tie_word_embeddings=False, initializer_range=0.1),
    )


def qwen2() -> PreTrainedModel:
    """Biases on q, k and v."""
    return build_tiny(
        Qwen2ForCausalLM, Qwen2Config(**_shape(48, 2, 4, 2, 80), tie_word_embeddings=True, initializer_range=0.1)
    )


def qwen3() -> PreTrainedModel:
    """Norms on q and k, and a head width of its own."""
    return build_tiny(
        Qwen3ForCausalLM,
        Qwen3Config(**_shape(40, 2, 4, 2, 72), head_dim=12, tie_word_embeddings=False, initializer_range=0.1),
    )


def phi3() -> PreTrainedModel:
    """Fused qkv and gate-up projections."""
    return build_tiny(
        Phi3ForCausalLM,
        Phi3Config(**_shape(48, 2, 4, 2, 72), sliding_window=64, tie_word_embeddings=False, initializer_range=0.1),
    )


def gemma() -> PreTrainedModel:
    """Tied, scaled embeddings."""
    return build_tiny(GemmaForCausalLM, GemmaConfig(**_shape(48, 2, 4, 1, 72), head_dim=12, initializer_range=0.1))


def gemma2() -> PreTrainedModel:
    """Alternating sliding windows and soft-capped logits."""
    return build_tiny(
        Gemma2ForCausalLM,
        Gemma2Config(
            **_shape(48, 2, 4, 2, 72), head_dim=12, sliding_window=16, query_pre_attn_scalar=12, initializer_range=0.1
        ),
    )


def gemma3() -> PreTrainedModel:
    """Text-only Gemma 3: two rotary bases, sliding windows on all but every sixth layer."""
    return build_tiny(
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **_shape(48, 3, 4, 2, 72),
            head_dim=12,
            sliding_window=16,
            query_pre_attn_scalar=12,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            initializer_range=0.1,
        ),
    )


def bloom() -> PreTrainedModel:
    """ALiBi, fused qkv, biases everywhere, a norm behind the embeddings."""
    config = BloomConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        n_layer=2,
        n_head=4,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.1,
    )
    return build_tiny(BloomForCausalLM, config)


def gpt_neo() -> PreTrainedModel:
    """Learnt positions, and every other layer sees the last tokens alone."""
    config = GPTNeoConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        num_layers=2,
        num_heads=4,
        intermediate_size=72,
        attention_types=[[["global", "local"], 1]],
        window_size=16,
        max_position_embeddings=256,
        initializer_range=0.1,
    )
    return build_tiny(GPTNeoForCausalLM, config)


def gpt2() -> PreTrainedModel:
    """As transformers makes it, with `Conv1D`; an import makes GPTBigCode of it."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=256,
        n_embd=48,
        n_layer=2,
        n_head=4,
        n_inner=72,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.1,
    )
    return build_tiny(GPT2LMHeadModel, config)


def falcon() -> PreTrainedModel:
    """One key and one value for all queries, fused with them, beside the feed-forward."""
    config = FalconConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_hidden_size=72,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.1,
    )
    return build_tiny(FalconForCausalLM, config)


def stablelm() -> PreTrainedModel:
    """Heads of 16, of which a quarter is turned; norms with biases."""
    return build_tiny(
        StableLmForCausalLM,
        StableLmConfig(**_shape(64, 2, 4, 2, 72), tie_word_embeddings=False, initializer_range=0.1),
    )


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": llama,
    "llama_tied_gqa": llama_tied_gqa,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "phi3": phi3,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "bloom": bloom,
}
RARER: dict[str, Callable[[], PreTrainedModel]] = {"gpt2": gpt2, "falcon": falcon, "stablelm": stablelm}
"""Tried through the whole pipeline alone."""


def mixtral() -> PreTrainedModel:
    """Four experts, two for each token."""
    config = MixtralConfig(
        **_shape(48, 2, 4, 2, 56), num_local_experts=4, tie_word_embeddings=False, initializer_range=0.1
    )
    return build_tiny(MixtralForCausalLM, config)


def qwen3_moe() -> PreTrainedModel:
    """Six narrow experts, two for each token, and a head width of its own."""
    return build_tiny(Qwen3MoeForCausalLM, Qwen3MoeConfig(**_shape(40, 2, 4, 2, 72), **_experts(6, 24), head_dim=12))


def qwen2_moe() -> PreTrainedModel:
    """A shared expert beside the others."""
    shape = {**_shape(48, 2, 4, 2, 72), **_experts(4, 24), "norm_topk_prob": False}
    return build_tiny(Qwen2MoeForCausalLM, Qwen2MoeConfig(**shape, shared_expert_intermediate_size=40))


def olmoe() -> PreTrainedModel:
    """Shares of the experts that do not add up to one."""
    shape = {**_shape(48, 2, 4, 4, 24), **_experts(4, 24)}
    del shape["moe_intermediate_size"]
    return build_tiny(OlmoeForCausalLM, OlmoeConfig(**{**shape, "norm_topk_prob": False}))


def fused_experts_config() -> GptOssConfig:
    """Of a mixture whose experts nobody makes linears of."""
    return GptOssConfig(
        num_hidden_layers=2,
        num_local_experts=4,
        hidden_size=32,
        intermediate_size=32,
        vocab_size=64,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
    )


def _experts(count: int, inner: int) -> dict[str, object]:
    return {
        "num_experts": count,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": inner,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
        "initializer_range": 0.1,
    }


MIXTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "mixtral": mixtral,
    "olmoe": olmoe,
    "qwen2_moe": qwen2_moe,
    "qwen3_moe": qwen3_moe,
}
"""Mixtures of experts, as transformers makes them: with fused experts."""


ENCODER_SHAPE = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 72,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
}
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
ENCODERS: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**ENCODER_SHAPE),
    "albert": AlbertConfig(**ENCODER_SHAPE, embedding_size=24),
    "distilbert": DistilBertConfig(
        dim=48, n_layers=2, n_heads=4, hidden_dim=72, vocab_size=VOCABULARY, max_position_embeddings=256
    ),
    "deberta": DebertaConfig(**ENCODER_SHAPE, **DISENTANGLED),
    "deberta-v2": DebertaV2Config(**ENCODER_SHAPE, **DISENTANGLED, position_buckets=16, share_att_key=True),
    "mpnet": MPNetConfig(**ENCODER_SHAPE),
}
"""Encoders that are published with the head of a masked language model: BERT and ALBERT then have no pooler."""


def bert() -> PreTrainedModel:
    """An encoder without a head."""
    return build_tiny(BertModel, BertConfig(**ENCODER_SHAPE))


def masked_language_model(family: str) -> PreTrainedModel:
    """An encoder with the head that it is pretrained and published with."""
    return build_tiny(AutoModelForMaskedLM.from_config, ENCODERS[family])


def save_tiny_encoder(directory: Path, family: str | None = None) -> Path:
    """Write the tiny BERT, or one of `ENCODERS`, and the tokenizer as a Hugging Face directory; returns it."""
    directory.mkdir(parents=True, exist_ok=True)
    save_model(bert() if family is None else masked_language_model(family), tiny_tokenizer(), directory)
    return directory


def save_tiny(family: str, directory: Path) -> Path:
    """Write a tiny model of `family` and the tokenizer as a Hugging Face directory; returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    save_model({**FAMILIES, **MIXTURES, **RARER}[family](), tiny_tokenizer(), directory)
    return directory


def pruned_model(family: str, *, share: float = 0.5, seed: int = 3) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """A tiny model, a share of whose linear weights are zeros, and the masks that say which."""
    model = FAMILIES[family]()
    return model, prune_at_random(model, share=share, seed=seed)


def prune_at_random(model: PreTrainedModel, *, share: float, seed: int = 3) -> dict[str, torch.Tensor]:
    """Put a share of a model's linear weights at zero; gives the masks that say which."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    with torch.no_grad():
        for path, linear in find_layers(model).linears().items():
            masks[path] = torch.rand(linear.weight.shape, generator=generator) > share
            linear.weight.mul_(masks[path])
    return masks
