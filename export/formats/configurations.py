"""The configurations that stand beside an exported graph, as Hugging Face writes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save_configurations(model: PreTrainedModel, directory: Path) -> None:
    """Write config.json, and generation_config.json of a model that generates."""
    model.config.save_pretrained(str(directory))
    # Other classes than those that generate lack the attribute altogether.
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.save_pretrained(str(directory))
