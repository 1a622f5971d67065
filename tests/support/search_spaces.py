"""A small search space of ranks."""

from __future__ import annotations

from typing import Any

from shearling.elastic.search_space import AdapterSpec, RankTemplate, SearchSpace


def make_space(*, layers: Any = "all", values: tuple[int, ...] = (32, 24, 16)) -> SearchSpace:
    return SearchSpace(
        model_type="llama",
        num_layers=3,
        layers_path="model.layers",
        adapter=AdapterSpec(
            r_max=32, alpha=64.0, dropout=0.0, masked_training=True, target_modules=("q_proj", "k_proj", "up_proj")
        ),
        templates=(
            RankTemplate(name="qk", modules=("self_attn.q_proj", "self_attn.k_proj"), values=values),
            RankTemplate(name="up", modules=("mlp.up_proj",), values=(32, 16)),
        ),
        layers=layers,
    )
