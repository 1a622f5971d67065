"""`python -m train.tune`: train what a search has found a little longer, alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shearling.command_line import DebugFlag, ForceFlag, JsonFlag, Result, make_app, run_command

if TYPE_CHECKING:
    from shearling.subnet import OpenSubnet

app = make_app("Train one sub-network of a super-adapter further, alone, so that it owes the others nothing.")


@app.command()
def tune(
    subnet: Annotated[Path, typer.Option(help="best.json of a search, or what search.pick wrote.", show_default=False)],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.", show_default=False)],
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Below that of the training: the adapter is good already.")] = 2e-4,
    name: Annotated[str, typer.Option(help="Of the new adapter, beside the old one in the run; NAME.json describes it.")] = "tuned",
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Write RUN/NAME, a super-adapter of which one sub-network was trained further, and RUN/NAME.json, which export takes."""
    from shearling.subnet import open_subnet
    from train import ranks

    ranks.silence_others()
    document = tune_subnet(open_subnet(subnet), steps=steps, learning_rate=learning_rate, name=name, force=force)
    if not ranks.is_main():
        raise typer.Exit
    data = {"output": str(document), "steps": steps}
    return Result(
        data, f"{document}: {steps} steps on {subnet} alone\nnext: python -m export --subnet {document} --output {document.parent / 'export'}"
    )


def tune_subnet(found: OpenSubnet, *, steps: int, learning_rate: float, name: str = "tuned", force: bool = False) -> Path:
    """Train one sub-network further, with the rows, batches and seed of the training that it comes from.

    The other sub-networks of the new adapter are worth nothing: they share weights that went their own way. What the search measured
    holds no longer, so the document has no metrics.

    Args:
        found: the sub-network, verified.
        steps: of the optimiser.
        learning_rate: at the start; the schedule is the training's, without warm-up.
        name: of the artefact in the run.
        force: replace one that stands there.

    Returns:
        The document of the sub-network, `RUN/NAME.json`.

    Raises:
        UsageError: the learning rate is 0, or the name is no name of a directory.
        OutputExists: there is one, and `force` is false.
        TrainingDiverged: the loss became NaN or infinite; the last good checkpoint is kept.
    """
    from shearling.artefact import check_destination, open_artefact
    from shearling.errors import UsageError
    from shearling.recipe import TaskSection, TrainSection, section_as_json
    from shearling.reordering import REORDERING_FILE, load_reordering
    from shearling.run import Run
    from shearling.strict_json import write_document
    from shearling.subnet import describe_subnet
    from shearling.super_network import assemble_super_network
    from train import ranks
    from train.rank_sampler import OneSubnet
    from train.super_adapter import Training, carry_out

    if not learning_rate > 0:
        raise UsageError(f"a learning rate of {learning_rate}", remedy="Give one above 0")
    run, choice = Run(found.adapter.path.resolve().parent), found.subnet.choice
    if name in ("", ".", "..") or Path(name).name != name or run.path / name == found.adapter.path.resolve():
        raise UsageError(f"{name!r} does not name another directory of the run", where=run.path, remedy="Give one name, without slashes")
    destination = run.path / name
    check_destination(destination, force=force)
    details = found.adapter.manifest.details
    recipe = details["recipe"]
    changed = {"steps": steps, "epochs": None, "learning_rate": learning_rate, "warmup_steps": 0, "sandwich": False, "distillation": False}
    section = TrainSection.model_validate({**recipe["train"], **changed}, strict=False)
    task = open_artefact(run.task, kind="task")

    def build() -> Any:
        file = found.adapter.path / REORDERING_FILE
        reordering = load_reordering(file, base=found.frozen.path) if REORDERING_FILE in found.adapter.manifest.files else None
        return assemble_super_network(found.frozen, found.adapter), reordering

    inputs = {"tuned": dict(choice), "train": section_as_json(section), "from": found.adapter.sha256}
    training = Training(
        frozen=found.frozen,
        task=task,
        parents={found.frozen.manifest.kind: found.frozen, "task": task},
        task_section=TaskSection.model_validate(recipe["task"], strict=False),
        section=section,
        seed=int(recipe["seed"]),
        inputs=inputs,
        details={"recipe": {**recipe, "train": section_as_json(section)}, "search": details["search"], **inputs},
        build=build,
        sampler=lambda space: OneSubnet(space, choice, seed=int(recipe["seed"])),
    )
    carry_out(training, destination, force=force)
    ranks.wait_for_all()
    document = run.path / f"{name}.json"
    if ranks.is_main():
        adapter = open_artefact(destination, kind="super_adapter")
        subnet_id = f"{found.subnet.id}-{name}"
        described = describe_subnet(adapter, choice, subnet_id=subnet_id, location=run.path, metrics=None, provenance=found.subnet.provenance)
        write_document(document, described)
    return document


if __name__ == "__main__":
    run_command(app, program="python -m train.tune")
