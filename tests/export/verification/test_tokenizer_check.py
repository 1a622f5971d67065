"""Converted tokenizers against the model's own: real ones, where the conversion is right, wrong and nearly right."""

from __future__ import annotations

import shutil
from pathlib import Path

import openvino
import openvino_tokenizers
import pytest

from export.formats.openvino import read_tokenizer, write_tokenizer
from export.verification.tokenizer_check import PLAIN_TEXTS, TokenizerCheck, check_tokenizer
from tests.support.tiny_models import (
    SPACED,
    beginning_tokenizer,
    tidying_tokenizer,
    tiny_tokenizer,
    word_piece_tokenizer,
)

CHINESE = "你好，世界。今天天气很好！"


def converted(tokenizer, directory: Path, **options) -> TokenizerCheck:
    directory.mkdir(exist_ok=True)
    write_tokenizer(tokenizer, directory)
    return check_tokenizer("openvino", read_tokenizer(directory), tokenizer, **options)


@pytest.mark.parametrize("make", [tiny_tokenizer, beginning_tokenizer, word_piece_tokenizer])
def test_a_right_conversion_passes(make, tmp_path: Path) -> None:
    check = converted(make(), tmp_path, rows=["a row of the user's"])
    assert (check.read_otherwise, check.written_otherwise, check.violation, check.verdict) == ((), (), None, "ok")
    assert check.texts > len(PLAIN_TEXTS) + 2


def test_one_that_agrees_on_english_and_not_on_chinese_is_refused_with_the_text(tmp_path: Path) -> None:
    # The converter takes Chinese characters apart whatever the normalizer says.
    check = converted(word_piece_tokenizer(handle_chinese_chars=False), tmp_path)
    assert CHINESE in check.read_otherwise
    assert not any(text.isascii() for text in check.read_otherwise)
    assert check.violation is not None
    assert f"into other tokens, such as {CHINESE!r}" in check.violation
    assert check.written_otherwise == ()


def test_what_few_texts_hold_is_told_and_refuses_nothing(tmp_path: Path) -> None:
    from tokenizers import normalizers

    tokenizer = tiny_tokenizer()
    # Of a capital I with a dot OpenVINO makes one character, and the tokenizers library two.
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    check = converted(tokenizer, tmp_path / "fixed")
    assert check.violation is None
    assert check.read_otherwise == ("\u0130stanbul",)
    assert "'\u0130stanbul'" in check.verdict
    # Unless the user's rows hold it.
    check = converted(tokenizer, tmp_path / "rows", rows=["Fly to \u0130zmir " + 20 * "again and "])
    assert check.violation is not None
    assert "'Fly to \u0130zmir again and again and again a...'" in check.violation


def test_a_detokenizer_that_writes_otherwise_is_refused(tmp_path: Path) -> None:
    from tokenizers import decoders

    tokenizer, other = tiny_tokenizer(), tiny_tokenizer()
    other.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("今", "?")])
    write_tokenizer(tokenizer, tmp_path)
    (tmp_path / "other").mkdir()
    write_tokenizer(other, tmp_path / "other")
    for file in (tmp_path / "other").glob("openvino_detokenizer.*"):
        shutil.copy(file, tmp_path)
    check = check_tokenizer("openvino", read_tokenizer(tmp_path), tokenizer)
    assert (check.read_otherwise, check.written_otherwise) == ((), (CHINESE,))
    assert check.violation is not None
    assert f"writes 1 of {check.texts} texts otherwise, such as {CHINESE!r}" in check.violation


def test_spaces_that_the_tokenizer_would_tidy_up_are_kept(tmp_path: Path) -> None:
    tokenizer = tidying_tokenizer()
    assert tokenizer.decode(tokenizer.encode(SPACED)) != SPACED
    check = converted(tokenizer, tmp_path, rows=[SPACED])
    assert (check.written_otherwise, check.verdict) == ((), "ok")
    assert read_tokenizer(tmp_path).decode(tokenizer.encode(SPACED)) == SPACED


def test_a_detokenizer_that_tidies_spaces_up_is_refused(tmp_path: Path) -> None:
    tokenizer = tidying_tokenizer()
    write_tokenizer(tokenizer, tmp_path)
    _, decoder = openvino_tokenizers.convert_tokenizer(
        tokenizer, with_detokenizer=True, clean_up_tokenization_spaces=True
    )
    openvino.save_model(decoder, tmp_path / "openvino_detokenizer.xml")
    check = check_tokenizer("openvino", read_tokenizer(tmp_path), tokenizer, rows=[SPACED])
    assert SPACED in check.written_otherwise
    assert check.violation is not None


@pytest.mark.parametrize("tidies", [True, False])
def test_word_pieces_are_written_alike_whether_the_tokenizer_tidies_them_up(tidies: bool, tmp_path: Path) -> None:
    tokenizer = word_piece_tokenizer()
    tokenizer.clean_up_tokenization_spaces = tidies
    assert converted(tokenizer, tmp_path, rows=["They do n't"]).written_otherwise == ()
