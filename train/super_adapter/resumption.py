"""What an unfinished training leaves to the next one.

It is continued where all that decides its outcome is the same. Where something else is asked for, it is set aside under
another name: what has been trained for hours is deleted with --force alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shearling.artefact import unfinished_artefact
from shearling.console import log
from shearling.recipe.adapter import AdapterSection
from shearling.recipe.quantization import QuantizationSection
from shearling.recipe.recipe import stored_section
from shearling.recipe.section import Section
from shearling.recipe.sparsity import SparsitySection
from shearling.recipe.task import TaskSection
from shearling.recipe.training import TrainSection
from shearling.recipe.width import WidthSection
from shearling.strict_json import write_text

INPUTS_FILE = "inputs.json"
CHECKPOINTS = "checkpoints"

SECTIONS: Mapping[str, type[Section]] = {
    "task": TaskSection,
    "data": TaskSection,
    "sparsity": SparsitySection,
    "quantization": QuantizationSection,
    "adapter": AdapterSection,
    "width": WidthSection,
    "train": TrainSection,
}
"""What a section among the inputs is, by its name there."""

INDIFFERENT = ("memory", "save_steps", "report_to", "gradient_checkpointing")
"""Keys of [train] that decide no number of the adapter."""


OF_SEVERAL: Mapping[str, tuple[str, ...]] = {"train": ("draw", "largest_first", "shrinking"), "adapter": ("scaling",)}
"""Keys of sections that decide nothing where there is one sub-network, as for LoRA."""


UNTOLD = frozenset({"processes", "width_text"})
"""What an unfinished training of an older version does not tell, and which is therefore no difference."""


def deciding_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the outcome of a training, as this version would store it, whichever version did.

    Args:
        inputs: sections by name, as JSON, and digests; see `train.super_adapter.artefact.recipe_inputs`.
    """
    found = {key: _as_of_today(key, value) for key, value in inputs.items() if key != "name"}
    if isinstance(found.get("train"), dict):
        found["train"] = {key: value for key, value in found["train"].items() if key not in INDIFFERENT}
    if _is_one_subnet(found):
        for name, indifferent in OF_SEVERAL.items():
            found[name] = {key: value for key, value in found[name].items() if key not in indifferent}
    return found


def differing_keys(stored: Any, wanted: Any, *, key: str = "") -> list[str]:
    """Dotted names of what differs in two documents; a key that is absent is as good as null."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        return [
            name
            for inner in dict.fromkeys((*wanted, *stored))
            for name in differing_keys(stored.get(inner), wanted.get(inner), key=f"{key}.{inner}" if key else inner)
        ]
    return [] if stored == wanted else [key]


def continue_or_set_aside(destination: Path, *, inputs: Mapping[str, Any], parents: Mapping[str, str]) -> None:
    """Make the unfinished artefact ready for a training: the same one goes on in it, another one finds it empty.

    Args:
        destination: where the artefact will stand.
        inputs: what decides the outcome.
        parents: digests of what the adapter is made from, by role.
    """
    directory = unfinished_artefact(destination)
    file = directory / INPUTS_FILE
    wanted = json.loads(json.dumps({"recipe": dict(inputs), "parents": dict(parents)}, indent=2))
    stored = _read(file)
    for key in UNTOLD - stored["recipe"].keys() if stored["recipe"] else ():
        wanted["recipe"].pop(key, None)
    changed = differing_keys(stored["parents"], wanted["parents"])
    changed = [f"its {role}" for role in changed] + differing_keys(
        deciding_inputs(stored["recipe"]), deciding_inputs(wanted["recipe"])
    )
    if file.is_file() and not changed:
        return
    _set_aside(destination, changed)
    directory.mkdir()
    write_text(file, json.dumps(wanted, indent=2))


def _is_one_subnet(inputs: Mapping[str, Any]) -> bool:
    """Whether the sections say so; of a tuned sub-network they say nothing."""
    if inputs.get("width") is not None or not all(isinstance(inputs.get(name), dict) for name in OF_SEVERAL):
        return False
    return all(len(group["ranks"]) == 1 for group in inputs["adapter"]["groups"])


def _as_of_today(key: str, value: Any) -> Any:
    kind = SECTIONS.get(key)
    if kind is None or value is None:
        return value
    return [stored_section(kind, item) for item in value] if isinstance(value, list) else stored_section(kind, value)


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """Of a training that was killed before it had written them, nothing."""
    try:
        stored = json.loads(file.read_text())
        return {name: dict(stored[name]) for name in ("recipe", "parents")}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {"recipe": {}, "parents": {}}


def _set_aside(destination: Path, changed: list[str]) -> None:
    """Move what was trained out of the way; what holds no checkpoint yet goes."""
    from train.super_adapter.trainer import newest_checkpoint

    directory = unfinished_artefact(destination)
    newest = newest_checkpoint(directory / CHECKPOINTS)
    if newest is None:
        shutil.rmtree(directory)
        return
    number = 1
    while (aside := destination.with_name(f"{destination.name}-unfinished-{number}")).exists():
        number += 1
    directory.rename(aside)
    log.print(
        f"an unfinished training, {newest.name.replace('-', ' ')}, is set aside as {aside}: this one differs in "
        f"{', '.join(changed)}; to continue that one, rename it to {directory.name} and train as before"
    )
