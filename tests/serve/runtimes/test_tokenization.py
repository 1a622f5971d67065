from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from serve.runtimes.tokenization import TextStream, TextTokenizer
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


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 100])
def test_a_stream_never_shows_half_a_character(directory: Path, at_once: int) -> None:
    tokenizer = TextTokenizer(directory)
    pieces: list[str] = []
    stream = TextStream(tokenizer, pieces.append)
    tokens = tokenizer.encode(TEXT, chat=False)
    for begin in range(0, len(tokens), at_once):
        stream.push(*tokens[begin : begin + at_once])
    stream.finish()
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)


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


def test_chat_without_a_template(directory: Path) -> None:
    (directory / "chat_template.jinja").unlink()
    tokenizer = TextTokenizer(directory)
    assert not tokenizer.has_chat_template()
    with pytest.raises(UsageError, match="no chat template"):
        tokenizer.encode(TEXT, chat=True)


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('roles must alternate') }}", "{% for %}", "{{ messages.__class__.__mro__ }}"]
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
