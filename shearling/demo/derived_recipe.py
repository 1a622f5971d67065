"""Recipes that the demo makes of the shipped ones: smaller for a smoke run, with another seed, or for a baseline."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shearling.strict_json import write_text

_CHECKOUT, _INSTALLED = Path(__file__).resolve().parents[2] / "recipes", Path(__file__).with_name("recipes")
RECIPES = _CHECKOUT if (_CHECKOUT / "smollm2-shears.toml").is_file() else _INSTALLED
"""The shipped ones: beside the package in a checkout, and inside it where a wheel was installed (setup.py)."""

SMOKE: Mapping[str, Mapping[str, Any]] = {
    "task": {"rows": {"train": 192, "validation": 48, "test": 64}},
    "sparsity": {"healing": {"steps": 8}},
    "model": {"adaptation": {"steps": 12}},
    "train": {"steps": 12},
    "search": {"evaluations": 4, "population": 2, "limit": 24},
}
"""What a smoke run changes; sections that a recipe lacks stay absent, within sections as well.

The calibration stays whole: pruned on too little text, the model amplifies rounding until float32 runtimes differ by
more than the parity gate.
"""


def derive_recipe(source: Path, destination: Path, *, smoke: bool, seed: int = 0, lora: bool = False) -> Path:
    """Write a recipe made from another, unless it would be the same.

    Args:
        source: a shipped recipe.
        destination: where the derived one goes.
        smoke: shrink it.
        seed: of the run and of its search; 0 is that of every shipped recipe.
        lora: make the baseline of this super-network; see `plain_lora`.

    Returns:
        The recipe to use: `source` itself where nothing changes.
    """
    recipe = _read(source)
    if not smoke and not seed and not lora:
        return source
    if lora:
        recipe = plain_lora(recipe)
    if smoke:
        recipe = _changed(recipe, SMOKE)
    if seed:
        recipe |= {"seed": seed, "search": {**recipe.get("search", {}), "seed": seed}}
    destination.parent.mkdir(parents=True, exist_ok=True)
    text = f"# Derived from {source.name} by the demo.\n{render_toml(recipe)}"
    if not destination.is_file() or destination.read_text(encoding="utf-8") != text:
        write_text(destination, text)
    return destination


def plain_lora(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """LoRA at full width in place of a super-network: the same adapters at their largest rank, trained likewise,
    nothing elastic.

    Args:
        recipe: of the super-network, valid.

    Returns:
        The recipe of its baseline; its only sub-network is described, not searched for.
    """
    groups = [{**group, "ranks": group["ranks"][:1]} for group in recipe["adapter"]["groups"]]
    without = {
        "train": ("sandwich", "distillation", "teacher"),
        "search": ("population", "max_cost_share", "accuracy_delta", "reference_accuracy", "prefer"),
    }
    train, search = (
        {name: value for name, value in recipe.get(part, {}).items() if name not in names}
        for part, names in without.items()
    )
    kept = {name: value for name, value in recipe.items() if name != "width"}
    changed = {
        "adapter": {**recipe["adapter"], "groups": groups},
        "train": train,
        "search": {**search, "algorithm": "heuristic", "evaluations": 1},
    }
    return {**kept, "name": f"{recipe['name']}-lora", **changed}


def _changed(section: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    changed = dict(section)
    for name, value in changes.items():
        if not isinstance(value, Mapping):
            changed[name] = value
        elif name in section:
            changed[name] = _changed(section[name], value)
    return changed


def _read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def render_toml(data: Mapping[str, Any], *, prefix: str = "") -> str:
    """TOML of nested tables, arrays of tables, and plain values; reading it gives `data` again."""
    plain, tables = [], []
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            tables.append(f"\n[{name}]\n{render_toml(value, prefix=f'{name}.')}")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            tables += [f"\n[[{name}]]\n{render_toml(item, prefix=f'{name}.')}" for item in value]
        else:
            # A JSON string, number, boolean or array of them is TOML as well; DEL is the one character that differs.
            plain.append(f"{key} = {json.dumps(value, ensure_ascii=False)}\n")
    return "".join(plain + tables)
