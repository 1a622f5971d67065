"""Tiny runs: a recipe, data and a tiny model on disk, and what the train stage makes of them in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel

from shearling.elastic.search_space import AdapterSpec, RankTemplate, SearchSpace
from shearling.elastic.super_network import SuperNetwork, build_super_network
from shearling.model.layers import find_layers
from shearling.recipe.recipe import Recipe, read_recipe
from tests.support.tiny_models import pruned_model, save_tiny, tiny_tokenizer

GROUPS = {
    "phi3": {"qkv": ["qkv_proj"], "gate_up": ["gate_up_proj"], "down": ["down_proj"]},
    "mixtral": {"qkv": ["q_proj", "k_proj", "v_proj"], "out": ["o_proj"]},
    "qwen3_moe": {"qkv": ["q_proj", "k_proj", "v_proj"], "out": ["o_proj"]},
    "gpt2": {"qkv": ["c_attn"], "up": ["c_fc"], "down": ["mlp.c_proj"]},
    "falcon": {"qkv": ["query_key_value"], "up": ["dense_h_to_4h"], "down": ["mlp.dense_4h_to_h"]},
    "bloom": {"qkv": ["query_key_value"], "up": ["dense_h_to_4h"], "down": ["mlp.dense_4h_to_h"]},
}
LLAMA_GROUPS = {"qkv": ["q_proj", "k_proj", "v_proj"], "up": ["up_proj"], "down": ["down_proj"]}
HEADLINES = {
    "name": "headlines",
    "path": "headlines.jsonl",
    "text": "{{ headline }}",
    "prompt": "Headline: {{ text }}\nSarcastic:",
    "choices": [" no", " yes"],
    "gold": "{{ label }}",
}
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
RANKS = (6, 4, 2)
ALPHA = 12


def write_headlines(path: Path, rows: int) -> Path:
    """A two-choice task that a model can learn: the answer stands in the headline."""
    lines = [
        json.dumps(
            {"headline": f"Report {number}: {'sure, great' if number % 2 else 'rain falls'}", "label": number % 2}
        )
        for number in range(rows)
    ]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def write_tiny_recipe(
    directory: Path,
    *,
    family: str = "llama_tied_gqa",
    adaptation: dict[str, object] | None = None,
    masked: bool = True,
    sparse: bool = True,
    seed: int = 3,
    dropout: float = 0.0,
    scaling: str = "constant",
    rows: int = 80,
    task: dict[str, object] | None = None,
    sparsity: dict[str, object] | None = None,
    variants: list[float] | None = None,
    quantization: dict[str, object] | None = None,
    train: dict[str, object] | None = None,
    width: dict[str, object] | None = None,
    search: dict[str, object] | None = None,
    data: list[dict[str, object]] | None = None,
) -> Path:
    """Write model, data and recipe below `directory`; returns the path of the recipe."""
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / "source").exists():
        save_tiny(family, directory / "source")
    write_headlines(directory / "headlines.jsonl", rows)
    # Short trainings learn more of whole rows, and their draws are many: as in the papers.
    learnt = {**({} if (task or {}).get("messages") else {"train_on_prompt": True}), "train_on_end": True}
    defaults = {
        "draw": "independent",
        "largest_first": 0.0,
        "steps": 6,
        "batch_size": 4,
        "learning_rate": 0.01,
        "schedule": "constant",
        "precision": "fp32",
        "save_steps": 2,
    }
    settings = {**defaults, **(train or {})}
    pruning = {"method": "magnitude", "ratio": 0.5, **(sparsity or {})}
    groups = "".join(
        f"\n[[adapter.groups]]\nname = {json.dumps(name)}\nmodules = {json.dumps(modules)}\nranks = "
        f"{json.dumps(RANKS)}\n"
        for name, modules in GROUPS.get(family, LLAMA_GROUPS).items()
    )
    recipe = directory / "recipe.toml"
    recipe.write_text(
        f"""schema = "shearling.recipe/1"
name = "tiny"
seed = {seed}

[model]
model_id = "tiny/{family}"
path = "source"
{"[model.adaptation]" if adaptation is not None else ""}
{_lines(adaptation or {})}

[task]
{_lines({"max_length": 32, **learnt, **HEADLINES, **(task or {})})}
[task.split]
{_lines(SHARES)}

{"[sparsity]" if sparse else ""}
{_lines(pruning) if sparse else ""}
{"[sparsity.calibration]" if sparse else ""}
{_lines({"samples": 4, "seq_len": 16}) if sparse else ""}
{f"[variants]{chr(10)}ratios = {json.dumps(variants)}" if variants else ""}
{_quantization(quantization) if quantization else ""}
[adapter]
r = {RANKS[0]}
lora_alpha = {ALPHA}
lora_dropout = {dropout}
scaling = {json.dumps(scaling)}
masked = {json.dumps(masked)}
{groups}
{_width(width) if width else ""}
[train]
{_lines(settings)}
{"[search]" if search else ""}
{_lines(search or {})}
{_data(data or [])}"""
    )
    return recipe


def _data(sections: list[dict[str, object]]) -> str:
    # Prompts that tasks share stand in the same split of all then.
    return "".join(f"\n[[data]]\n{_lines({'split': SHARES, **section})}\n" for section in sections)


def _quantization(section: dict[str, object]) -> str:
    return f"[quantization]\n{_lines(section)}\n[quantization.calibration]\nsamples = 8\nseq_len = 32\n"


def tiny_recipe(directory: Path, **options: object) -> Recipe:
    """`write_tiny_recipe`, read back."""
    return read_recipe(write_tiny_recipe(directory, **options))  # type: ignore[arg-type] # the same options


def sparse_model(family: str, *, seed: int = 5) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """A tiny model whose linears are half zeros, and the masks that say which."""
    return pruned_model(family, seed=seed)


def tiny_network(
    family: str = "llama",
    *,
    masked: bool,
    seed: int = 5,
    trained: bool = True,
    by_rank: bool = False,
    alpha: float = ALPHA,
) -> SuperNetwork:
    """A super-network in memory; `trained` fills B, which starts at zero; `by_rank` scales by the active rank."""
    model, masks = sparse_model(family, seed=seed)
    transformer = find_layers(model)
    by_end = {name.rpartition(".")[2]: name for name in transformer.linear_names}
    groups = {
        name: tuple(by_end[module.rpartition(".")[2]] for module in modules)
        for name, modules in GROUPS.get(family, LLAMA_GROUPS).items()
    }
    space = SearchSpace(
        model_type=model.config.model_type,
        num_layers=len(transformer.layers),
        layers_path=transformer.layers_path,
        adapter=AdapterSpec(
            r_max=RANKS[0],
            alpha=alpha,
            dropout=0.0,
            scaling="alpha_over_rank" if by_rank else "alpha_over_r_max",
            masked_training=masked,
            target_modules=tuple(module.rpartition(".")[2] for modules in groups.values() for module in modules),
        ),
        templates=tuple(RankTemplate(name=name, modules=modules, values=RANKS) for name, modules in groups.items()),
    )
    generator = torch.Generator().manual_seed(seed)
    network = build_super_network(model, tiny_tokenizer(), space, masks if masked else None, generator=generator)
    if trained:
        with torch.no_grad():
            for layer in network.layers.values():
                layer.lora_b.copy_(torch.randn(layer.lora_b.shape, generator=generator) * 0.1)
    return network


def _width(values: dict[str, object]) -> str:
    """[width] with one group for each part that has a list of widths."""
    parts = {part: values[part] for part in ("feed_forward", "attention") if part in values}
    head = (
        "[width]\nreorder = "
        f"{json.dumps(values.get('reorder', 'none'))}\n\n[width.calibration]\nsamples = 4\nseq_len = 16\n"
    )
    return head + "".join(
        f'\n[[width.groups]]\nname = "{part}_width"\npart = "{part}"\nwidths = {json.dumps(widths)}\n'
        for part, widths in parts.items()
    )


def _lines(values: dict[str, object]) -> str:
    return "".join(f"{key} = {_toml(value)}\n" for key, value in values.items() if value is not None)


def _toml(value: object) -> str:
    """A value; a section within a section as an inline table."""
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_toml(inner)}' for key, inner in value.items())} }}"
    return json.dumps(value)
