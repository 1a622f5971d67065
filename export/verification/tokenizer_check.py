"""Whether the tokenizer that a format has converted reads and writes texts as the model's own does.

A converter rebuilds it of the operators of a runtime, and what it rebuilds may agree on English prose and differ where
it meets digits, line ends, special tokens or another script: then the model is served other tokens than were measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.verification.parity import TEXT
from shearling.console import log
from shearling.strict_json import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_TEXTS = (
    TEXT,
    "Hello, world!",
    " a leading space",
    "a trailing space ",
    "two  spaces,   three, and    four",
    "one line\nanother\n\nand one after an empty line\n",
    "one line\r\nanother, as Windows ends it\r\n",
    "one\ttab\t\tand two",
    "In 2024 it was 3.14159 times 1,234,567, or 0.1 %.",
    "12345678901234567890",
    "I can't, you don't, they'll; WE'VE, it's",
    "def f(x):\n    return {'a': x ** 2, \"b\": [1, 2]}  # comment\n",
    "https://example.org/path?query=1&other=%20#part, name@example.org",
    "Größe, Straße, naïve café, señor, Ærøskøbing, żółć, ağaç",
    "Привет, мир! Сегодня хорошая погода.",
    "Καλημέρα κόσμε",
    "你好，世界。今天天气很好！",
    "こんにちは世界。カタカナとひらがな",
    "안녕하세요, 세계!",
    "مرحبا بالعالم، كيف حالك؟",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "“Quotes” and ‘quotes’ – a dash — … €5",
    "😀 👍🏽 👨‍👩‍👧 🇩🇪",
)
"""What any user's text may hold: one that is read or written otherwise refuses the file."""

RARE_TEXTS = (
    "",
    "   ",
    "\n",
    "\ta tab at the very beginning",
    "cafe\u0301, an accent as a character of its own",
    "\u0130stanbul",
    "\ufb01ve, \u2163, \u2460, \uff21\uff22",
    "no\u00a0break, ideographic\u3000space, zero\u200bwidth",
    "a control character: \u0007",
)
"""What few users' texts hold: told, and not refused for."""

CHAT = (
    {"role": "user", "content": "What is 12 + 30?\n\nAnswer  briefly."},
    {"role": "assistant", "content": "42."},
    {"role": "user", "content": "Thanks!"},
)
MOST_SPECIAL = 16
SHOWN_TEXTS, SHOWN_CHARACTERS = 3, 40


@dataclass(frozen=True)
class ConvertedTokenizer:
    """A tokenizer as a runtime has it.

    Attributes:
        encode: text -> tokens, with those that begin and end a text.
        decode: tokens -> text, without special tokens.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]


class TokenizerCheck(Document):
    """A converted tokenizer against the model's own, text by text.

    Attributes:
        candidate: whose it is, such as `openvino`.
        texts: how many were read and written.
        read_otherwise: how those begin that become other tokens.
        written_otherwise: how those begin whose tokens become another text.
        violation: what refuses the file, in words; None is a pass.
    """

    candidate: str
    texts: int
    read_otherwise: tuple[str, ...]
    written_otherwise: tuple[str, ...]
    violation: str | None

    @property
    def verdict(self) -> str:
        """In words."""
        if self.violation is not None:
            return self.violation
        told = _in_words(self.read_otherwise, self.written_otherwise, self.texts)
        return "ok" if told is None else f"ok, but rare texts: {told}"


def check_tokenizer(
    candidate: str, converted: ConvertedTokenizer, original: PreTrainedTokenizerBase, *, rows: Sequence[str] = ()
) -> TokenizerCheck:
    """Compare tokens and texts on fixed texts, special tokens, a conversation and rows; said on the screen as well.

    Args:
        candidate: what the tokenizer is called in the report.
        converted: as its runtime has it.
        original: the model's own.
        rows: text of the user's task.
    """
    plain = dict.fromkeys((*PLAIN_TEXTS, *_with_special_tokens(original), *rows))
    texts = tuple(dict.fromkeys((*plain, *RARE_TEXTS)))
    tokens = {text: list(original(text)["input_ids"]) for text in texts}
    # No runtime of an export takes spaces before punctuation away, whatever the tokenizer's configuration says.
    expected = {
        text: original.decode(tokens[text], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for text in texts
    }
    read = tuple(text for text in texts if _encoded(converted, text) != tokens[text])
    found = {text: converted.decode(tokens[text]) for text in texts if tokens[text]}
    written = tuple(text for text in found if found[text] != expected[text])
    check = TokenizerCheck(
        candidate=candidate,
        texts=len(texts),
        read_otherwise=tuple(map(_beginning, read)),
        written_otherwise=tuple(map(_beginning, written)),
        violation=_in_words(
            [text for text in read if text in plain],
            [text for text in written if text in plain],
            len(texts),
        ),
    )
    log.print(f"tokenizer {candidate}, {len(texts)} texts: {check.verdict}")
    return check


def _with_special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    special = tokenizer.all_special_tokens[:MOST_SPECIAL]
    texts = [f"one{token}two {token} three" for token in special]
    if tokenizer.chat_template:
        try:
            texts.append(str(tokenizer.apply_chat_template(list(CHAT), tokenize=False)))
        # Whatever a template raises that knows no such conversation.
        except Exception as error:
            log.print(f"the chat template does not render, and is not compared: {error}")
    return texts


def _encoded(converted: ConvertedTokenizer, text: str) -> list[int] | None:
    try:
        return converted.encode(text)
    except RuntimeError:
        # Such as of an operator that takes no empty text.
        return None


def _in_words(read: Sequence[str], written: Sequence[str], total: int) -> str | None:
    """None where nothing differs."""
    parts = []
    if read:
        parts.append(f"its tokenizer reads {len(read)} of {total} texts into other tokens, such as {_shown(read)}")
    if written:
        parts.append(f"its detokenizer writes {len(written)} of {total} texts otherwise, such as {_shown(written)}")
    return "; ".join(parts) or None


def _shown(texts: Sequence[str]) -> str:
    return ", ".join(repr(_beginning(text)) for text in texts[:SHOWN_TEXTS])


def _beginning(text: str) -> str:
    # A report may be published, and rows are the user's.
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
