"""The tokenizer of a GGUF file, rebuilt on the file's own vocabulary.

The tokenizer that transformers derives from a GGUF doubles BOS and does not convert to OpenVINO, so it is built here
from what the file says: vocabulary, token types, and the merges with the name of the pre-tokenizer (byte-level BPE:
GPT, Llama 3, Qwen), or the scores of the pieces (SentencePiece BPE: Llama 2, Mistral, Gemma, Phi 3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from shearling.console import log
from shearling.errors import ModelUnsupported
from shearling.model.gguf_header import GgufHeader

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedTokenizerBase

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
"""Values of `tokenizer.ggml.token_type` (GGUF specification): pieces, special tokens, and ordinary text that is never
split."""
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What a space is among the pieces of SentencePiece."""

BASIC_LATIN_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORD_PATTERN = (
    BASIC_LATIN_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How the GPT-4 family of tokenizers splits text; %s is how digits are taken."""

Splitting = Literal["gpt2", "digits", "words-digit", "words-triplet"]

SPLITTING: dict[str, Splitting] = {
    "default": "gpt2",
    "gpt-2": "gpt2",
    "phi-2": "gpt2",
    "olmo": "gpt2",
    "mpt": "gpt2",
    "smollm": "digits",
    "refact": "digits",
    "starcoder": "digits",
    "command-r": "digits",
    "qwen2": "words-digit",
    "deepseek-r1-qwen": "words-digit",
    "stablelm2": "words-digit",
    "llama-bpe": "words-triplet",
    "llama3": "words-triplet",
    "llama-v3": "words-triplet",
}
"""`tokenizer.ggml.pre` -> how text is split before merging."""


def rebuild_tokenizer(header: GgufHeader) -> PreTrainedTokenizerBase:
    """Build the tokenizer that the file describes, a BPE of bytes or of SentencePiece.

    Raises:
        ModelUnsupported: another kind of tokenizer, or a pre-tokenizer that is not known here.
    """
    from transformers import PreTrainedTokenizerFast

    tokens: list[str] = header.require("tokenizer.ggml.tokens")
    names = {
        "bos_token": header.fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token": header.require("tokenizer.ggml.eos_token_id"),
        "pad_token": header.fields.get(
            "tokenizer.ggml.padding_token_id", header.require("tokenizer.ggml.eos_token_id")
        ),
        "unk_token": header.fields.get("tokenizer.ggml.unknown_token_id"),
    }
    special = {role: tokens[index] for role, index in names.items() if index is not None}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_built(header, tokens, special),
        clean_up_tokenization_spaces=False,
        model_max_length=_context_length(header),
        **special,
    )
    # Of the model rather than of the tokenizer, which has no place for more than one; see `end_tokens_of`.
    vars(tokenizer)["end_token_ids"] = header.end_ids
    template = header.fields.get("tokenizer.chat_template")
    if template:
        tokenizer.chat_template = template
    return tokenizer


def _built(header: GgufHeader, tokens: list[str], special: dict[str, str]) -> Tokenizer:
    from tokenizers import AddedToken, processors

    kind = header.require("tokenizer.ggml.model")
    if kind == "gpt2":
        splitting = _splitting(header)
        tokenizer, begins = _byte_level_bpe(header, tokens, splitting), splitting == "words-triplet"
    elif kind == "llama":
        tokenizer, begins = _sentencepiece_bpe(header, tokens, unknown=special.get("unk_token")), True
    else:
        raise ModelUnsupported(
            f"its tokenizer is of type {kind!r}; byte-level BPE ('gpt2') and SentencePiece BPE ('llama') can be "
            "rebuilt from a GGUF file",
            where=header.path,
            remedy="Take the Hugging Face directory instead",
        )
    types = header.fields.get("tokenizer.ggml.token_type") or []
    added = [(token, kind) for token, kind in zip(tokens, types, strict=False) if kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False) for token, kind in added])
    bos = special.get("bos_token")
    if bos is not None and header.fields.get("tokenizer.ggml.add_bos_token", begins):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokens.index(bos))]
        )
    return tokenizer


def _byte_level_bpe(header: GgufHeader, tokens: list[str], splitting: Splitting) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    merges = [tuple(merge.split(" ")) for merge in header.require("tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=splitting == "words-triplet"))
    if splitting == "words-digit":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer(splitting)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece_bpe(header: GgufHeader, tokens: list[str], *, unknown: str | None) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores: list[float] = header.require("tokenizer.ggml.scores")
    types: list[int] = header.require("tokenizer.ggml.token_type")
    pieces = [index for index, kind in enumerate(types) if kind == NORMAL]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(tokens, scores, pieces),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", SPACE)]
    back: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if header.fields.get("tokenizer.ggml.add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend(SPACE))
        back.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(back)
    return tokenizer


def _merges(tokens: list[str], scores: list[float], pieces: list[int]) -> list[tuple[str, str]]:
    """SentencePiece joins the two neighbours whose piece has the best score: every way to cut a piece in two, best
    pieces first.
    """
    order = {tokens[index]: index for index in pieces}
    ways = []
    for index in sorted(pieces, key=lambda index: (-scores[index], index)):
        piece = tokens[index]
        cuts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        known = [cut for cut in cuts if cut[0] in order and cut[1] in order]
        ways += sorted(known, key=lambda cut: (order[cut[0]], order[cut[1]]))
    return ways


def _splitting(header: GgufHeader) -> Splitting:
    name = header.fields.get("tokenizer.ggml.pre")
    if name is None:
        # The converter of llama.cpp names it since May 2024.
        log.print(
            f"{header.path.name} does not name its pre-tokenizer (tokenizer.ggml.pre): text is split as GPT-2's, "
            "into other tokens than Llama 3 and Qwen were trained on; a newer conversion of the model names it"
        )
        return SPLITTING["default"]
    if name not in SPLITTING:
        raise ModelUnsupported(
            f"the pre-tokenizer {name!r} is not known (known: {', '.join(sorted(SPLITTING))})",
            where=header.path,
            remedy="Take the Hugging Face directory instead",
        )
    return SPLITTING[name]


def pre_tokenizer(splitting: Splitting) -> PreTokenizer:
    """How text is split before merging."""
    from tokenizers import Regex, pre_tokenizers

    if splitting == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if splitting == "digits":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    digits = r"\p{N}" if splitting == "words-digit" else r"\p{N}{1,3}"
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN % digits), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _context_length(header: GgufHeader) -> int:
    return int(header.require(f"{header.require('general.architecture')}.context_length"))
