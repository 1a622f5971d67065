"""The tokens that end a text: the tokenizer names one, and a model may have more, such as the end of a turn.

Gemma, Llama 3 and Qwen list theirs in generation_config.json, where the end of what a chat model says is not what ends
a document.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shearling.strict_json import MAX_BYTES, read_json

GENERATION_CONFIG, CONFIG = "generation_config.json", "config.json"
TOKENIZER_CONFIG, TOKENIZER = "tokenizer_config.json", "tokenizer.json"
MOST_TOKENIZER_BYTES = 2**28


def end_token_ids(*sources: Mapping[str, Any]) -> tuple[int, ...]:
    """All that configurations give as `eos_token_id`, a number or a list, in ascending order.

    Args:
        sources: such as the content of config.json, whose `text_config` counts as well.
    """
    ids: set[int] = set()
    for source in sources:
        nested = source.get("text_config")
        for scope in (source, nested if isinstance(nested, Mapping) else {}):
            value = scope.get("eos_token_id")
            ids |= {item for item in (value if isinstance(value, list) else [value]) if type(item) is int}
    return tuple(sorted(ids))


def read_end_tokens(directories: Iterable[Path]) -> tuple[int, ...]:
    """Those that the configurations and the tokenizer in these directories give; of each file the first that is there.

    Raises:
        DocumentInvalid: such a file is no JSON object.
    """
    places = tuple(directories)
    return tuple(sorted({*_configured(places), *_of_tokenizer(places)}))


def end_tokens_of(tokenizer: Any) -> frozenset[int]:
    """The end of text of a tokenizer, and what the model beside it in its directory ends with.

    Args:
        tokenizer: of transformers; one that was not loaded from a directory knows its own end alone, or those of the
            GGUF file that it was rebuilt from.
    """
    own = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
    origin = getattr(tokenizer, "name_or_path", "")
    beside = _configured([Path(origin)]) if origin and Path(origin).is_dir() else ()
    return frozenset((*own, *beside, *getattr(tokenizer, "end_token_ids", ())))


def _configured(places: Iterable[Path]) -> tuple[int, ...]:
    return end_token_ids(*(_first(places, name) for name in (GENERATION_CONFIG, CONFIG)))


def _of_tokenizer(places: Iterable[Path]) -> Iterator[int]:
    """Its own end: configurations may name another, where a training gave the tokenizer a new one and nothing else."""
    own = _first(places, TOKENIZER_CONFIG)
    end = own.get("eos_token")
    text = end.get("content") if isinstance(end, Mapping) else end
    if not isinstance(text, str):
        return
    # Where it is written depends on the version of transformers that wrote it.
    written = own.get("added_tokens_decoder")
    tokens: list[tuple[Any, Any]]
    if isinstance(written, Mapping):
        tokens = [(token, int(id_)) for id_, token in written.items() if id_.isdecimal()]
    else:
        listed = _first(places, TOKENIZER, max_bytes=MOST_TOKENIZER_BYTES).get("added_tokens")
        objects = [item for item in listed if isinstance(item, Mapping)] if isinstance(listed, list) else []
        tokens = [(item, item.get("id")) for item in objects]
    for token, number in tokens:
        if isinstance(token, Mapping) and token.get("content") == text and type(number) is int:
            yield number


def _first(places: Iterable[Path], name: str, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    found = (place / name for place in places if (place / name).is_file())
    return next((read_json(path, max_bytes=max_bytes) for path in found), {})
