"""A runtime reads a prompt as training and evaluation have read it, whatever its tokenizer adds to a text."""

from __future__ import annotations

from pathlib import Path

import openvino
import pytest

from serve.runtimes.tokenization import TextTokenizer
from shearling.kernel.loading.prompt_encoding import encode_prompt, encode_prompt_in_genai
from shearling.model.text_encoder import TextEncoder
from tests.support.tiny_models import EOS, IM_START, beginning_tokenizer, end_appending_tokenizer, tiny_tokenizer

PROMPTS = ("The quick", f"{IM_START}The quick", f"The quick{EOS}", "")


@pytest.mark.parametrize("make", [tiny_tokenizer, beginning_tokenizer, end_appending_tokenizer])
def test_every_tokenizer_says_what_training_read(make, tmp_path: Path) -> None:
    import openvino_genai
    from openvino_tokenizers import convert_tokenizer

    tokenizer = make()
    tokenizer.save_pretrained(str(tmp_path))
    for part, name in zip(
        convert_tokenizer(tokenizer, with_detokenizer=True), ("tokenizer", "detokenizer"), strict=True
    ):
        openvino.save_model(part, tmp_path / f"openvino_{name}.xml")
    plain, genai = TextTokenizer(tmp_path), openvino_genai.Tokenizer(tmp_path)
    for prompt in PROMPTS:
        read = list(TextEncoder(tokenizer)(prompt))
        assert plain.encode(prompt, chat=False) == read
        assert encode_prompt_in_genai(prompt, genai) == read


def test_a_tokenizer_that_reads_nothing_in_a_text_has_no_end_to_leave_out() -> None:
    assert encode_prompt("a", lambda text, special: [], beginning="", ends=[0]) == []
