"""What the files of a model say of its licence, as the fields of a Hugging Face model card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shearling.model.gguf_header import GgufHeader
from shearling.recipe.model import LICENSE_ID

CARD = "README.md"
GGUF_FIELDS = {
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
}


def license_of_gguf(header: GgufHeader) -> dict[str, str]:
    """Of a GGUF file; see `license_of_directory`."""
    return _card_fields({field: header.fields.get(key) for field, key in GGUF_FIELDS.items()})


def license_of_directory(directory: Path) -> dict[str, str]:
    """Of a Hugging Face directory, from its own card.

    Returns:
        `license` and, where it is not one that the hub has a name for, `license_name` and `license_link`; empty where
        there is no card, or it does not say.
    """
    import yaml
    from huggingface_hub import metadata_load

    if not (directory / CARD).is_file():
        return {}
    try:
        return _card_fields(metadata_load(directory / CARD) or {})
    # Nothing depends on a stranger's card: one that cannot be read says nothing.
    except (ValueError, yaml.YAMLError):
        return {}


def _card_fields(stated: Mapping[str, Any]) -> dict[str, str]:
    fields = {name: stated[name].strip() for name in GGUF_FIELDS if isinstance(stated.get(name), str)}
    text = fields.get("license", "")
    if not text:
        return {}
    identifier = text.lower()
    if re.fullmatch(LICENSE_ID, identifier):
        return fields | {"license": identifier}
    # A sentence instead of an identifier: the hub takes it as the name of a licence of its own.
    named = {"license": "other", "license_name": re.sub("[^a-z0-9.]+", "-", identifier).strip("-")}
    return named | {name: value for name, value in fields.items() if name == "license_link"}
