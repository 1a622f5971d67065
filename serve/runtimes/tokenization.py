"""Text to tokens and back for the runtimes without a tokenizer of their own, without importing transformers or
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from shearling.errors import ArtefactMissing, ModelUnsupported, UsageError
from shearling.kernel.loading.prompt_encoding import encode_prompt
from shearling.strict_json import read_json

UNFINISHED = "\ufffd"
"""What a byte-level decoder gives for the first bytes of a character."""
MINJA = "Minja's error: "
"""GenAI's engine of chat templates."""
WINDOW = 24
"""From so many tokens on, a stream leaves those before its last piece behind."""


class TextTokenizer:
    """The tokenizer of a Hugging Face directory.

    Args:
        directory: holds `tokenizer.json`, and perhaps a chat template.

    Raises:
        ArtefactMissing: no `tokenizer.json`.
        ModelUnsupported: the tokenizers library cannot read it.
    """

    def __init__(self, directory: Path) -> None:
        from tokenizers import Tokenizer

        path = directory / "tokenizer.json"
        if not path.is_file():
            raise ArtefactMissing(
                "no tokenizer here: tokenizer.json is missing",
                where=directory,
                remedy="Export again, or copy it from the model",
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        # The library reports a malformed file as a bare Exception.
        except Exception as error:
            raise ModelUnsupported(f"the tokenizer does not load: {error}", where=path) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        config_path = directory / "tokenizer_config.json"
        self._config = read_json(config_path) if config_path.is_file() else {}
        self._template = _chat_template(directory, self._config)
        self._where = directory

    def has_chat_template(self) -> bool:
        """Whether `encode` can format a chat turn."""
        return self._template is not None

    def encode(self, prompt: str, *, chat: bool) -> list[int]:
        """Token ids of a prompt.

        Raises:
            UsageError: `chat`, and there is no template.
            ModelUnsupported: the template fails.
        """
        if chat:
            return list(self._tokenizer.encode(self._render(prompt), add_special_tokens=False).ids)
        tokens = self._special_tokens()
        return encode_prompt(
            prompt,
            lambda text, special: self._tokenizer.encode(text, add_special_tokens=special).ids,
            beginning=tokens["bos_token"],
            ends=[self._tokenizer.token_to_id(tokens["eos_token"])],
        )

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, special ones left out; `clean_up_tokenization_spaces` of the configuration is not heeded."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _render(self, prompt: str) -> str:
        return render_turn(self._template, prompt, self._special_tokens(), where=self._where)

    def _special_tokens(self) -> dict[str, str]:
        """By the name that templates know; empty where there is none."""
        return {key: _content(self._config.get(key)) for key in ("bos_token", "eos_token", "pad_token", "unk_token")}


class TokenizedRuntime:
    """The half of a `Runtime` that is text, where a `TextTokenizer` does it."""

    _tokenizer: TextTokenizer

    def has_chat_template(self) -> bool:
        """See `TextTokenizer.has_chat_template`."""
        return self._tokenizer.has_chat_template()

    def encode(self, prompt: str, *, chat: bool) -> list[int]:
        """See `TextTokenizer.encode`."""
        return self._tokenizer.encode(prompt, chat=chat)

    def decode(self, token_ids: Sequence[int]) -> str:
        """See `TextTokenizer.decode`."""
        return self._tokenizer.decode(token_ids)


class Decoder(Protocol):
    """Turns tokens into text."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""


def joined_behind(decoder: Decoder, after: Sequence[int], token_ids: Sequence[int]) -> str:
    """Text of tokens as it continues others. Alone, many tokenizers take the space before its first word for the
    beginning of a text, and leave it out.

    Args:
        decoder: of both.
        after: some tokens before these; none where the text stands alone.
        token_ids: of the text.
    """
    pieces: list[str] = []
    stream = TextStream(decoder, pieces.append, after=after)
    stream.push(*token_ids)
    stream.finish()
    return "".join(pieces)


class TextStream:
    """Turns tokens into text piece by piece; a character whose bytes span tokens appears when it is whole.

    Only the last tokens are decoded with each new one, so that the work does not grow with the text.

    Args:
        tokenizer: decodes.
        on_text: takes the pieces.
        after: the last tokens of what the text continues, see `joined_behind`; none where it stands alone.
    """

    def __init__(self, tokenizer: Decoder, on_text: Callable[[str], None], *, after: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._on_text = on_text
        self._tokens = list(after)
        self._shown, self._shown_tokens = tokenizer.decode(after) if after else "", len(after)

    def push(self, *token_ids: int) -> None:
        """Take one more token, or some."""
        self._tokens.extend(token_ids)
        text = self._tokenizer.decode(self._tokens)
        if not text.endswith(UNFINISHED):
            self._show(text)

    def finish(self) -> None:
        """Show what is left, whole characters or not."""
        self._show(self._tokenizer.decode(self._tokens))

    def _show(self, text: str) -> None:
        if not text.startswith(self._shown):
            # Of bytes that are decoded together, one that fits no character spoils those before it.
            self._tokens = self._tokens[self._shown_tokens :]
            self._shown, self._shown_tokens = "", 0
            text = self._tokenizer.decode(self._tokens)
        if text == self._shown:
            return
        self._on_text(text[len(self._shown) :])
        if len(self._tokens) >= WINDOW:
            # This piece stays, since a tokenizer may treat the first word of a text differently. It begins with a whole
            # character, since what was shown before it ends with one.
            self._tokens = self._tokens[self._shown_tokens :]
            text = self._tokenizer.decode(self._tokens)
        self._shown, self._shown_tokens = text, len(self._tokens)


def render_turn(template: str | None, prompt: str, special_tokens: Mapping[str, str], *, where: Path) -> str:
    """A lone turn of the user, in a chat template.

    Args:
        template: of the model; None where it has none.
        prompt: what the user says.
        special_tokens: by the name that templates know.
        where: the model.

    Raises:
        UsageError: there is no template.
        ModelUnsupported: it fails.
    """
    from jinja2 import TemplateError

    from serve.runtimes.chat_template import render_chat

    if template is None:
        raise no_chat_template(where)
    try:
        return render_chat(template, [{"role": "user", "content": prompt}], special_tokens)
    except Exception as error:  # a template is code, and may raise anything
        said = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
        raise chat_template_fails(said, where=where) from error


def no_chat_template(where: Path) -> UsageError:
    """The error for `--chat` where there is no template."""
    return UsageError("--chat was given, and this tokenizer has no chat template", where=where, remedy="Use --no-chat")


def told_by_minja(error: RuntimeError) -> str:
    """Why GenAI cannot apply a chat template: one line of many, of which the last ones draw the place."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next((line for line in lines if line.startswith(MINJA)), lines[0]).removeprefix(MINJA).rstrip(":")


def chat_template_fails(reason: str, *, where: Path) -> ModelUnsupported:
    """The error for a template that is malformed, or refuses a lone turn of the user."""
    return ModelUnsupported(f"the chat template fails: {reason}", where=where, remedy="Use --no-chat")


def _chat_template(directory: Path, config: dict[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = next(
            (item.get("template") for item in template if isinstance(item, dict) and item.get("name") == "default"),
            None,
        )
    return template if isinstance(template, str) else None


def _content(token: object) -> str:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
