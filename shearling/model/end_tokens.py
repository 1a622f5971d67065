"""The tokens that end a text: the tokenizer names one, and a model may have more, such as the end of a turn.

Gemma, Llama 3 and Qwen list theirs in generation_config.json, where the end of what a chat model says is not what ends
a document.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shearling.strict_json import read_json

GENERATION_CONFIG, CONFIG = "generation_config.json", "config.json"


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
    """Those that the configurations in these directories give; of each file the first that is there."""
    places = tuple(directories)
    found = [_first(places, name) for name in (GENERATION_CONFIG, CONFIG)]
    return end_token_ids(*found)


def end_tokens_of(tokenizer: Any) -> frozenset[int]:
    """The end of text of a tokenizer, and what the model beside it in its directory ends with.

    Args:
        tokenizer: of transformers; one that was not loaded from a directory knows its own end alone, or those of the
            GGUF file that it was rebuilt from.
    """
    own = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
    origin = getattr(tokenizer, "name_or_path", "")
    beside = read_end_tokens([Path(origin)]) if origin and Path(origin).is_dir() else ()
    return frozenset((*own, *beside, *getattr(tokenizer, "end_token_ids", ())))


def _first(places: Iterable[Path], name: str) -> dict[str, Any]:
    return next((read_json(place / name) for place in places if (place / name).is_file()), {})
