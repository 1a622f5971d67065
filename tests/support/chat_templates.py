"""Chat templates of well-known families, short enough to stand here, and the special tokens that they write.

With their generation tags they say themselves what the assistant writes; without these they are what is published.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from tests.support.tiny_models import tiny_tokenizer


@dataclass(frozen=True)
class Family:
    """A template with generation tags.

    Attributes:
        tagged: what stands between `<generation>` and `</generation>` is the assistant's.
        tokens: special ones, which the tokenizer of the family has.
    """

    tagged: str
    tokens: tuple[str, ...]

    @property
    def published(self) -> str:
        """The template without tags."""
        return self.tagged.replace("<generation>", "").replace("</generation>", "")

    @property
    def template(self) -> str:
        """The template with tags as transformers reads them."""
        tagged = self.tagged.replace("<generation>", "{% generation %}")
        return tagged.replace("</generation>", "{% endgeneration %}")

    def tokenizer(self, template: str) -> PreTrainedTokenizerFast:
        """The tiny tokenizer with the family's tokens and one of its templates."""
        tokenizer = tiny_tokenizer()
        tokenizer.add_special_tokens({"additional_special_tokens": list(self.tokens)})
        tokenizer.chat_template = template
        return tokenizer


CHATML = Family(
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' }}<generation>{{ message['content'] + '<|im_end|>' }}</generation>{{ '\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    (),
)
"""Qwen, SmolLM and others: every turn between <|im_start|> and <|im_end|>."""

ZEPHYR = Family(
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<|user|>\n' + message['content'] + '<|im_end|>' }}{% elif message['role'] == 'system' %}"
    "{{ '<|system|>\n' + message['content'] + '<|im_end|>' }}{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\n' }}<generation>{{ message['content'] + '<|im_end|>' }}</generation>{% endif %}{{ '\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}",
    ("<|user|>", "<|system|>", "<|assistant|>"),
)
"""Zephyr and TinyLlama, whose turns end with the end-of-text token."""

GEMMA = Family(
    "{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<start_of_turn>model\n' }}<generation>"
    "{{ message['content'] | trim + '<end_of_turn>' }}</generation>{{ '\n' }}{% else %}"
    "{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    ("<bos>", "<start_of_turn>", "<end_of_turn>"),
)
"""Gemma: the assistant is called model, contents are trimmed, roles alternate, and there is no system."""

FAMILIES = {"chatml": CHATML, "zephyr": ZEPHYR, "gemma": GEMMA}

FORGETFUL = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As Qwen3's: the last answer has thoughts, those before it have lost them."""
