"""What the train stage says when it is done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from shearling.artefact import Artefact
from shearling.command_line import Result, next_step
from shearling.elastic.search_space import SEARCH_SPACE_FILE, read_search_space, rounded_count
from shearling.run import Run
from train.super_adapter.artefact import LOG_FILE


def summarise(output: Path, made: Mapping[str, Artefact]) -> Result:
    """The artefacts of a run and their key figures, as JSON and as a table."""
    data: dict[str, Any] = {
        "run": str(output),
        "artefacts": {kind: {"path": str(item.path), "sha256": item.sha256} for kind, item in made.items()},
    }
    table = Table(title=escape(f"run {output}"), title_justify="left", caption_justify="left")
    table.add_column("artefact")
    table.add_column("what it holds")
    for kind, artefact in made.items():
        facts, words = _FACTS[kind.partition("/")[0]](artefact)
        data["artefacts"][kind] |= facts
        table.add_row(escape(str(artefact.path)), words)
    # A search that is there was of an earlier super-adapter, unless this one is it.
    again = ["--force"] if Run(output).search.exists() else []
    if "super_adapter" in made:
        table.caption = escape(next_step("-m", "search", "--run", str(output), *again))
    return Result(data, table)


def summarise_tuned(document: Path, *, subnet: Path, steps: int) -> Result:
    """What `tune` wrote, and how to export it."""
    export = document.parent / "export"
    again = ["--force"] if export.exists() else []
    follow = next_step("-m", "export", "--subnet", str(document), "--output", str(export), *again)
    return Result(
        {"output": str(document), "steps": steps},
        f"{document}: {steps} steps on {subnet} alone\n{follow}",
    )


def summarise_variants(artefact: Artefact) -> Result:
    """What `variants` made, and how to search among it."""
    facts, words = _variants(artefact)
    ratios = ",".join(f"{ratio:g}" for ratio in facts["ratios"])
    follow = next_step("-m", "search", "--run", str(artefact.path.parent), "--ratios", ratios)
    return Result({"output": str(artefact.path), **facts}, f"{artefact.path}: {words}\n{follow}")


def _task(artefact: Artefact) -> tuple[dict[str, Any], str]:
    rows = artefact.manifest.details["rows"]
    return {"rows": rows}, ", ".join(f"{count} {split}" for split, count in rows.items()) + " rows"


def _base(artefact: Artefact) -> tuple[dict[str, Any], str]:
    details = artefact.manifest.details
    return {
        "model_id": details["model_id"],
        "parameters": details["parameters"],
    }, f"{details['model_id']}, {details['parameters'] / 1e6:.1f} M weights"


def _sparse(artefact: Artefact) -> tuple[dict[str, Any], str]:
    sparsity = artefact.manifest.details["sparsity"]
    words = (
        f"{sparsity['method']}: {sparsity['achieved_scope']:.2%} of the pruned layers, "
        f"{sparsity['achieved_model']:.2%} of the model is zero"
    )
    return {"sparsity": sparsity}, words


def _variants(artefact: Artefact) -> tuple[dict[str, Any], str]:
    ratios = artefact.manifest.details["ratios"]
    return {"ratios": ratios}, f"layers with {', '.join(f'{ratio:.0%}' for ratio in ratios)} zeros"


def _super_adapter(artefact: Artefact) -> tuple[dict[str, Any], str]:
    space = read_search_space(artefact.path / SEARCH_SPACE_FILE)
    losses = [
        entry["loss"]
        for line in (artefact.path / LOG_FILE).read_text().splitlines()
        if "loss" in (entry := json.loads(line))
    ]
    facts = (
        {"groups": len(space.groups), "sub_networks": space.size, "loss_first": losses[0], "loss_last": losses[-1]}
        if losses
        else {}
    )
    words = f"{len(space.groups)} groups, {rounded_count(space.size)} sub-networks" + (
        f", loss {losses[0]:.2f} to {losses[-1]:.2f}" if losses else ""
    )
    return facts, words


_FACTS = {
    "task": _task,
    "data": _task,
    "base": _base,
    "lora": _super_adapter,
    "adapted": _base,
    "sparse": _sparse,
    "variants": _variants,
    "super_adapter": _super_adapter,
}
