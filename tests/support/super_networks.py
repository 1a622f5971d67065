"""What tests of super-networks share: the families that differ in structure, a choice, and what a model says."""

from __future__ import annotations

from typing import Any

import torch

from shearling.elastic.search_space import SearchSpace
from tests.support.tiny_models import VOCABULARY

FAMILIES = ["llama", "qwen2", "phi3", "bloom"]


def tokens(rows: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens()).logits


def mixed(space: SearchSpace) -> dict[str, int]:
    """A choice with every rank in it."""
    return {group.id: group.values[index % len(group.values)] for index, group in enumerate(space.groups)}
