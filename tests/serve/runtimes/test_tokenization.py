from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from serve.runtimes.tokenization import TextStream, TextTokenizer, joined_behind
from shearling.errors import ArtefactMissing, ModelUnsupported, UsageError
from tests.support.tiny_models import tiny_tokenizer

TEXT = "Grüße aus 東京 🦊, and 2024!"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tiny_tokenizer().save_pretrained(str(tmp_path))
    return tmp_path


def test_tokens_and_chat_are_those_of_transformers(directory: Path) -> None:
    ours, theirs = TextTokenizer(directory), tiny_tokenizer()
    assert ours.encode(TEXT, chat=False) == theirs(TEXT)["input_ids"]
    messages = [{"role": "user", "content": TEXT}]
    assert ours.encode(TEXT, chat=True) == theirs.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert ours.decode(ours.encode(TEXT, chat=False)) == TEXT


def streamed(tokenizer: TextTokenizer, tokens: Sequence[int], at_once: int) -> list[str]:
    pieces: list[str] = []
    stream = TextStream(tokenizer, pieces.append)
    for begin in range(0, len(tokens), at_once):
        stream.push(*tokens[begin : begin + at_once])
    stream.finish()
    return pieces


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 100])
def test_a_stream_never_shows_half_a_character(directory: Path, at_once: int) -> None:
    tokenizer = TextTokenizer(directory)
    pieces = streamed(tokenizer, tokenizer.encode(TEXT, chat=False), at_once)
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """As of Llama 2: unknown characters are bytes, and bytes that follow one another are decoded together."""
    known = ("<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "▁b")
    merges = [("▁", "a"), ("▁", "b")]
    vocabulary = {token: place for place, token in enumerate(known)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["</s>"])
    directory = tmp_path_factory.mktemp("byte_fallback")
    tokenizer.save(str(directory / "tokenizer.json"))
    return TextTokenizer(directory)


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 100])
@hypothesis.given(
    words=st.lists(st.sampled_from(["a", " b", "  ", "é", "東京", "😂", "😂" * 8, "</s>", "\ufffd"]), max_size=30)
)
@hypothesis.example(words=["a", "😂" * 8, " a", " b"])
@hypothesis.example(words=["a", *["</s>"] * 30, " a", " b"])
def test_a_stream_of_bytes_shows_the_characters_that_they_are(
    byte_fallback: TextTokenizer, at_once: int, words: list[str]
) -> None:
    tokens = byte_fallback.encode("".join(words), chat=False)
    assert "".join(streamed(byte_fallback, tokens, at_once)) == byte_fallback.decode(tokens)


def test_a_text_keeps_the_space_before_its_first_word_where_it_continues_another(byte_fallback: TextTokenizer) -> None:
    prompt, text = byte_fallback.encode("a b", chat=False), byte_fallback.encode("b a b", chat=False)
    assert byte_fallback.decode(text) == "b a b"
    for after in (prompt, prompt[-1:]):
        assert joined_behind(byte_fallback, after, text) == " b a b"
        for length in range(len(text) + 1):
            pieces: list[str] = []
            stream = TextStream(byte_fallback, pieces.append, after=after)
            stream.push(*text[:length])
            stream.push(*text[length:])
            stream.finish()
            assert "".join(pieces) == " b a b"
    assert joined_behind(byte_fallback, [], text) == "b a b"
    assert joined_behind(byte_fallback, prompt, []) == ""


@hypothesis.given(
    before=st.lists(st.sampled_from(["a", " b", "é", "東京", "</s>"]), max_size=3),
    words=st.lists(st.sampled_from(["a", " b", "é", "東京", "😂" * 8, "</s>"]), max_size=12),
)
def test_what_continues_a_text_is_the_rest_of_both_together(
    byte_fallback: TextTokenizer, before: list[str], words: list[str]
) -> None:
    prompt, tokens = (byte_fallback.encode("".join(part), chat=False) for part in (before, words))
    together = byte_fallback.decode([*prompt, *tokens])
    assert byte_fallback.decode(prompt) + joined_behind(byte_fallback, prompt, tokens) == together


@pytest.mark.parametrize("before", [1, 5, 12])
def test_bytes_that_are_no_character_spoil_none_that_was_shown(byte_fallback: TextTokenizer, before: int) -> None:
    tokens = byte_fallback.encode(f"a{'😂' * before}", chat=False)
    (first, second), after = byte_fallback.encode("😂", chat=False)[1:3], byte_fallback.encode(" b", chat=False)
    shown = f"a{'😂' * before}\ufffd\ufffd"
    assert "".join(streamed(byte_fallback, [*tokens, first, second], 1)) == shown
    assert "".join(streamed(byte_fallback, [*tokens, first, second, *after], 1)).startswith(shown)


def test_a_stream_decodes_a_few_tokens_at_a_time(directory: Path) -> None:
    tokenizer = TextTokenizer(directory)
    lengths: list[int] = []

    class Counting:
        def decode(self, token_ids: Sequence[int]) -> str:
            lengths.append(len(token_ids))
            return tokenizer.decode(token_ids)

    pieces: list[str] = []
    stream = TextStream(Counting(), pieces.append)
    text = f" {TEXT}" * 40
    for token in tokenizer.encode(text, chat=False):
        stream.push(token)
    stream.finish()
    assert "".join(pieces) == text
    assert max(lengths) <= 30


@pytest.mark.parametrize(
    "template",
    [
        "{{ strftime_now('%Y') }} {{ messages[0].content }}",
        "{% for message in messages * 3 %}{% if loop.index == 2 %}{% continue %}{% endif %}"
        "{{ loop.index }}: {{ message.content }}{% if loop.last %}{% break %}{% endif %}{% endfor %}",
        "{% set said = 'outer' %}{% for message in messages %}\n"
        "    {% generation %}\n{% set said = message.content %}{{ said }}{% endgeneration %}\n{{ said }}{% endfor %}",
        "{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }}",
        "{% if tools is not none or documents is not none %}tools{% endif %}{{ eos_token }}{{ add_generation_prompt }}",
    ],
)
def test_what_templates_use_in_transformers_they_may_use_here(directory: Path, template: str) -> None:
    (directory / "chat_template.jinja").write_text(template)
    turn = "<b>it's</b> 東京"
    expected = tiny_tokenizer().apply_chat_template(
        [{"role": "user", "content": turn}], chat_template=template, add_generation_prompt=True, return_dict=False
    )
    assert TextTokenizer(directory).encode(turn, chat=True) == expected


def test_chat_without_a_template(directory: Path) -> None:
    (directory / "chat_template.jinja").unlink()
    tokenizer = TextTokenizer(directory)
    assert not tokenizer.has_chat_template()
    with pytest.raises(UsageError, match="no chat template"):
        tokenizer.encode(TEXT, chat=True)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{% for %}",
        "{{ messages.__class__.__mro__ }}",
        "{{ messages + 1 }}",
        "{{ strftime_now(1) }}",
        "{{ 1 // 0 }}",
        "{{ range(1000000000) | list }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_a_template_that_fails_or_breaks_out(directory: Path, template: str) -> None:
    (directory / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelUnsupported, match="chat template fails"):
        TextTokenizer(directory).encode(TEXT, chat=True)


def test_a_tokenizer_that_is_missing_or_malformed(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(ModelUnsupported, match="does not load"):
        TextTokenizer(directory)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(ArtefactMissing, match=r"tokenizer\.json"):
        TextTokenizer(directory)
