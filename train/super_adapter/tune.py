"""One sub-network that a search has found, trained a little longer, alone: `python -m train tune`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from shearling.artefact import Artefact, open_artefact, remove_artefact
from shearling.elastic.reordering import REORDERING_FILE, Reordering, load_reordering
from shearling.elastic.subnet import OpenSubnet, describe_subnet, read_subnet
from shearling.elastic.super_network import SuperNetwork, assemble_super_network
from shearling.errors import ArtefactError, ArtefactMismatch, OutputExists, UsageError
from shearling.model.figures import read_figures
from shearling.recipe.adapter import AdapterSection
from shearling.recipe.recipe import read_stored_section
from shearling.recipe.task import TaskSection
from shearling.recipe.training import TeacherSection, TrainSection
from shearling.run import Run, data_role, open_dense
from shearling.strict_json import write_document
from train.estimates import trains_lean
from train.super_adapter import processes
from train.super_adapter.artefact import LearntTask, Training, carry_out, teacher_inputs, training_inputs
from train.super_adapter.choice_sampler import OneSubnet
from train.super_adapter.resumption import deciding_inputs, differing_keys


def tune_subnet(
    found: OpenSubnet,
    *,
    steps: int,
    learning_rate: float,
    name: str = "tuned",
    teacher: Path | None = None,
    force: bool = False,
) -> Path:
    """Train one sub-network further, with the rows, batches and seed of the training that it comes from.

    The other sub-networks of the new adapter are worth nothing: they share weights that went their own way. What the
    search measured holds no longer, so the document has no metrics.

    Args:
        found: the sub-network, verified.
        steps: of the optimiser.
        learning_rate: at the start; the schedule is the training's, without warm-up.
        name: of the artefact in the run.
        teacher: the model that `train.teacher.path` named when the adapter was trained; the run keeps its digest and
            not its place.
        force: replace one that stands there, as soon as the training begins.

    Returns:
        The document of the sub-network, `RUN/NAME.json`.

    Raises:
        UsageError: the learning rate is 0, or the name is that of another room of the run, or of none; or the layers
            of the sub-network are those of a mixture; or `teacher` is left out, or given where there was none.
        ArtefactMissing: there is no such teacher.
        ArtefactMismatch: the task of the run is not the one that the adapter was trained on, or the teacher is not the
            one that taught it.
        OutputExists: there is one, and `force` is false; or it is what is to be tuned, or the document describes
            something else.
        TrainingDiverged: the loss became NaN or infinite; the last good checkpoint is kept.
    """
    if found.mixture is not None:
        raise UsageError(
            "its layers have zeros and formats of their own, and only what is cut from one pruned model is trained "
            "further",
            where=found.path,
            remedy="Give a sub-network of a search without --ratios and --layer-formats",
        )
    if not learning_rate > 0:
        raise UsageError(f"a learning rate of {learning_rate}", remedy="Give one above 0")
    run, choice = Run(found.adapter.path.resolve().parent), found.subnet.choice
    destination, document = _destination(run, name)
    _check_not_tuned(found, destination, document)
    details = found.adapter.manifest.details
    recipe = details["recipe"]
    sections = [read_stored_section(TaskSection, given) for given in (recipe["task"], *recipe.get("data", ()))]
    rooms = {"task": run.task, **{data_role(section.name): run.data / section.name for section in sections[1:]}}
    tasks = [_open_task(found.adapter, role, path) for role, path in rooms.items()]
    changed = {
        "steps": steps,
        "epochs": None,
        "learning_rate": learning_rate,
        "warmup_steps": 0,
        "sandwich": False,
        "distillation": False,
    }
    section = read_stored_section(TrainSection, {**recipe["train"], **changed})
    section = section.model_copy(update={"teacher": _teacher(section.teacher, teacher)})
    # A run made where nobody teaches may have been moved without its dense base.
    sparse = found.frozen.manifest.kind == "sparse"
    base = open_dense(run) if sparse and section.teacher is not None else found.frozen
    inputs = {"tuned": dict(choice), "train": training_inputs(section), "from": found.adapter.sha256}
    inputs |= teacher_inputs(section, base)
    if inputs.get("teacher") != recipe.get("teacher"):
        raise ArtefactMismatch(
            "this teacher is not the one that taught the adapter",
            where=base.path if teacher is None else teacher,
            remedy=f"Give the one with the digest {recipe.get('teacher')}, or train again",
        )

    def build() -> tuple[SuperNetwork, Reordering | None]:
        file = found.adapter.path / REORDERING_FILE
        reordering = (
            load_reordering(file, base=found.frozen.path) if REORDERING_FILE in found.adapter.manifest.files else None
        )
        lean = trains_lean(
            read_figures(found.frozen.path),
            read_stored_section(AdapterSection, recipe["adapter"]),
            section,
            tasks=sections,
            on_grid=found.space.adapter.grid is not None,
        )
        lean = bool(processes.largest(int(lean)))
        return assemble_super_network(found.frozen, found.adapter, found.space, lean=lean), reordering

    training = Training(
        frozen=found.frozen,
        tasks=[LearntTask(artefact, section) for artefact, section in zip(tasks, sections, strict=True)],
        section=section,
        seed=int(recipe["seed"]),
        inputs=inputs,
        details={
            "recipe": {**recipe, "train": training_inputs(section)},
            **{name: details[name] for name in ("model", "search") if name in details},
            **inputs,
        },
        build=build,
        sampler=lambda space, _micro_batches: OneSubnet(space, choice, seed=int(recipe["seed"])),
        base=base,
    )
    with processes.main_first():
        _check_describes(document, destination)
        # The old one goes now, so that an interrupted training is continued without `force`.
        if force and processes.is_main():
            if destination.exists():
                open_artefact(destination, kind="super_adapter", only=())  # of another kind it is not ours to replace
            remove_artefact(destination)
            document.unlink(missing_ok=True)
        finished = _is_finished(destination, document, inputs)
    if not finished:
        carry_out(training, destination, force=False)
        processes.wait_for_all()
    if processes.is_main():
        _describe(found, destination, document)
    return document


def _open_task(adapter: Artefact, role: str, path: Path) -> Artefact:
    task = open_artefact(path, kind="task")
    if adapter.manifest.parents.get(role) != task.sha256:
        raise ArtefactMismatch(
            "this task is not the one that the adapter was trained on",
            where=task.path,
            remedy="Put that one back, or train again",
        )
    return task


def _teacher(section: TeacherSection | None, given: Path | None) -> TeacherSection | None:
    """The teacher of the training, with the place where the user says that it is."""
    named = None if section is None else section.path
    if named is None and given is not None:
        raise UsageError(
            "the adapter had no teacher other than the model of its own run",
            where="--teacher",
            remedy="Leave the option out",
        )
    if named is not None and given is None:
        raise UsageError(
            f"the adapter had the teacher {named}, and the run does not keep where that is",
            remedy="Name its directory: --teacher DIR",
        )
    return section if section is None else section.model_copy(update={"path": given})


def _destination(run: Run, name: str) -> tuple[Path, Path]:
    made = (
        run.task,
        run.base,
        run.lora,
        run.adapted,
        run.sparse,
        run.variants,
        run.super_adapter,
        run.search,
        run.latency,
        run.export,
        run.data,
        run.tensorboard,
    )
    rooms = {room.name for room in made}
    if name in ("", ".", "..") or Path(name).name != name or name in rooms:
        raise UsageError(
            f"{name!r} cannot be the name of a tuned adapter",
            where=run.path,
            remedy=f"Give one without slashes, and none of {', '.join(sorted(rooms))}",
        )
    return run.path / name, run.path / f"{name}.json"


def _check_not_tuned(found: OpenSubnet, destination: Path, document: Path) -> None:
    for made, source in ((destination, found.adapter.path), (document, found.path)):
        if made.resolve() == source.resolve():
            raise OutputExists("it is what is to be tuned", where=made, remedy="Choose another --name")


def _check_describes(document: Path, destination: Path) -> None:
    """See that a document that is there is that of an adapter of this name: another is not ours to replace."""
    if not document.exists():
        return
    try:
        adapter_file = document.resolve().parent / read_subnet(document).adapter.file
    except ArtefactError as error:
        raise OutputExists("it is no sub-network", where=document, remedy="Choose another --name") from error
    if adapter_file.parent.resolve() != destination.resolve():
        raise OutputExists(
            f"it describes a sub-network of {adapter_file.parent.name}, not of {destination.name}",
            where=document,
            remedy="Choose another --name",
        )


def _is_finished(destination: Path, document: Path, inputs: dict[str, Any]) -> bool:
    """Whether the same training was done, and only its document is missing."""
    if not destination.exists() and not document.exists():
        return False
    if destination.exists() and not document.exists():
        adapter = open_artefact(destination, kind="super_adapter")
        made = {key: adapter.manifest.details.get(key) for key in inputs}
        if not differing_keys(deciding_inputs(made), deciding_inputs(inputs)):
            return True
    where = document if document.exists() else destination
    raise OutputExists("the output exists", where=where, remedy="Choose another --name, or replace it with --force")


def _describe(found: OpenSubnet, destination: Path, document: Path) -> None:
    provenance = found.subnet.provenance
    if provenance is not None:
        results = found.path.resolve().parent / provenance.results_file
        provenance = provenance.model_copy(
            update={"results_file": Path(os.path.relpath(results, document.parent)).as_posix()}
        )
    adapter = open_artefact(destination, kind="super_adapter")
    subnet_id = f"{found.subnet.id}-{destination.name}"
    described = describe_subnet(
        adapter, found.subnet.choice, subnet_id=subnet_id, location=document.parent, metrics=None, provenance=provenance
    )
    write_document(document, described)
