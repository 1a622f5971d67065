"""The train stage from recipe to super-adapter: task, base, lora and adapted where it is asked for, sparse, variants,
super_adapter, each made once and reused if it fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling.artefact import (
    Artefact,
    Kind,
    check_destination,
    check_unlocked,
    open_artefact,
    remove_artefact,
    write_artefact,
)
from shearling.console import log
from shearling.errors import ModelUnsupported, OutputExists, RecipeInvalid
from shearling.evaluation.lm_eval_task import GeneratedAnswer, write_lm_eval_tasks
from shearling.evaluation.task import CALIBRATION_CHARACTERS, read_rows, rows_file
from shearling.model.checkpoint import load_tokenizer
from shearling.model.head import classifies
from shearling.model.token_ids import readable_ids
from shearling.recipe.recipe import Recipe, section_as_json, stored_section
from shearling.recipe.sparsity import SparsitySection
from shearling.recipe.task import TaskSection
from shearling.resources import Estimate
from shearling.run import Run, data_role, open_dense
from shearling.strict_json import write_json
from train.base.adaptation import adapting_recipe, write_adapted
from train.base.artefact import import_base, source_digest
from train.calibration import (
    calibration_blocks,
    calibration_file,
    calibration_sections,
    check_text,
    healing_text,
)
from train.preflight import ModelSource, check_recipe, check_structure, expected, preflight
from train.sparsity.artefact import sparsity_inputs, write_sparse
from train.sparsity.variants import variants_inputs, write_variants
from train.super_adapter import processes
from train.super_adapter.artefact import recipe_inputs, row_encoder, train_super_adapter
from train.super_adapter.encoded_rows import check_rows
from train.super_adapter.resumption import deciding_inputs
from train.task.chat import ChatRenderer
from train.task.records import check_data_there, digest_data
from train.task.rows import build_rows, check_answers, check_apart

if TYPE_CHECKING:
    from torch import Tensor

FACTS = {
    "recipe": "version of its part of the recipe",
    "source_sha256": "version of its data",
    "chat_template_sha256": "chat template",
    "calibration_text": "calibration text",
    "source": "source model",
    "head_seed": "seed",
}
"""What a manifest calls what an artefact was made from -> how that is told, behind the word "another"."""


def run_recipe(recipe: Recipe, out: Path, *, force: bool = False) -> dict[str, Artefact]:
    """Carry out a recipe; what is there already and was made by the same sections from the same inputs is reused.

    Args:
        recipe: validated.
        out: the run directory.
        force: make everything anew; each artefact replaces its predecessor when it is complete, except that the old
            super-adapter and what is left of an unfinished one go when the training begins, so that an interrupted
            training is continued without `force`.

    Returns:
        The artefacts of the run by kind.

    Raises:
        OutputExists: the last artefact exists, or an earlier one was made by another recipe, and `force` is false.
        ShearlingError: whatever the parts refuse.
    """
    run = Run(out)
    # The main process alone makes what no training makes, and replaces what is there; the others find it.
    force = force and processes.is_main()
    with processes.main_first():
        made = _import(recipe, run, force=force)
    adapting = adapting_recipe(recipe)
    if adapting is not None:
        made["lora"] = _train_lora(adapting, run, made)
    with processes.main_first():
        made |= _freeze(recipe, run, made, force=force)
    if recipe.variants is not None:
        with processes.main_first():
            made["variants"] = _freeze_variants(recipe, run, made, force=force)
    if recipe.adapter is not None:
        dense = made.get("adapted", made["base"])
        train_super_adapter(
            recipe,
            base=dense,
            frozen=made.get("sparse", dense),
            tasks=_artefacts_of_tasks(recipe, made),
            destination=run.super_adapter,
        )
        processes.wait_for_all()
        made["super_adapter"] = open_artefact(run.super_adapter, kind="super_adapter")
    return made


def make_sparse(recipe: Recipe, out: Path) -> dict[str, Artefact]:
    """Prune the dense model of a run that has one; nothing else is touched.

    Args:
        recipe: whose data and model the run has, with [sparsity].
        out: the run directory.

    Returns:
        The artefact, as `sparse`.

    Raises:
        RecipeInvalid: it has no [sparsity].
        OutputExists: there is another pruned model.
        ArtefactError: the run is incomplete or damaged, or its model cannot be pruned so.
    """
    run, section = Run(out), recipe.sparsity
    if section is None:
        raise RecipeInvalid("it has no [sparsity]", where="sparsity", remedy='Add it: method = "wanda", ratio = 0.5')
    dense, task = open_dense(run), open_artefact(run.task, kind="task")
    return {"sparse": _prune(section, run, dense, task, seed=recipe.seed, force=False)}


def make_variants(recipe: Recipe, out: Path, *, force: bool = False) -> dict[str, Artefact]:
    """Make the variants of a run that has a pruned model already; nothing else is touched.

    Args:
        recipe: that the run was made by, with [variants].
        out: the run directory.
        force: replace the variants that are there.

    Returns:
        The artefact, as `variants`.

    Raises:
        RecipeInvalid: it has no [variants].
        OutputExists: there are others, and `force` is false; or the pruned model is that of another recipe.
        ArtefactError: the run is incomplete or damaged.
    """
    run, section = Run(out), recipe.sparsity
    if recipe.variants is None or section is None:
        raise RecipeInvalid("it has no [variants]", where="variants", remedy="Add it: ratios = [0.6, 0.7, 0.8]")
    made = {"task": open_artefact(run.task, kind="task"), "sparse": open_artefact(run.sparse, kind="sparse")}
    facts = sparsity_inputs(section, seed=recipe.seed, texts=_calibration_texts(section, run))
    _reuse_or_make(
        run.sparse, "sparse", facts, {}, lambda: None, as_of_today=partial(stored_section, SparsitySection), force=False
    )
    return {"variants": _freeze_variants(recipe, run, made, force=force)}


def estimate_recipe(recipe: Recipe) -> dict[str, Estimate]:
    """What the parts of a run will take, by the name of what they make; nothing is written.

    Raises:
        ShearlingError: a training would refuse it too; see `check_recipe`.
    """
    return expected(recipe, check_recipe(recipe))


def _train_lora(adapting: Recipe, run: Run, made: Mapping[str, Artefact]) -> Artefact:
    """The adapter of the dense model, trained by all processes."""

    def train() -> None:
        train_super_adapter(
            adapting,
            base=made["base"],
            frozen=made["base"],
            tasks=_artefacts_of_tasks(adapting, made),
            destination=run.lora,
        )
        processes.wait_for_all()

    parents = {role: made[role] for role in ("base", "task", *(data_role(section.name) for section in adapting.data))}
    # No other data is a fact as well.
    facts = {"recipe": {"data": None, **deciding_inputs(recipe_inputs(adapting))}}
    return _reuse_or_make(run.lora, "super_adapter", facts, parents, train, as_of_today=deciding_inputs, force=False)


def _artefacts_of_tasks(recipe: Recipe, made: Mapping[str, Artefact]) -> list[Artefact]:
    return [made["task"], *(made[data_role(section.name)] for section in recipe.data)]


def _import(recipe: Recipe, run: Run, *, force: bool) -> dict[str, Artefact]:
    if processes.is_main():
        # The others come when it was allowed to go on; what stood there may stand until its successor is complete.
        last, kind = _last_artefact(run, recipe)
        check_destination(last, kind=kind, force=force)
        if run.adapted.exists() and recipe.model.adaptation is None and not force:
            # Later stages would take it for the dense model of the run.
            raise OutputExists(
                "the recipe has no [model.adaptation], and this run an adapted model",
                where=run.adapted,
                remedy="Choose another --output, or replace the run with --force",
            )
    source = preflight(recipe, run.path, force=force)
    if force:
        _check_replaceable(run, recipe)
    run.path.mkdir(parents=True, exist_ok=True)

    conversations = any(task.form == "chat" for task in recipe.tasks)
    # Conversations are written by the template of the model; other data is refused before a large model is imported.
    made = {"base": _import_base(recipe, source, run, force=force)} if conversations else {}
    chat = ChatRenderer(load_tokenizer(run.base)) if conversations else None
    rooms = _task_rooms(recipe, run)
    tasks = {role: _import_task(role, section, path, chat, force=force) for role, section, path in rooms}
    check_apart({role.replace("/", "."): artefact.path for role, artefact in tasks.items()})
    made = tasks | (made or {"base": _import_base(recipe, source, run, force=force)})
    structure = check_structure(recipe, made["base"].path)
    _check_texts(recipe, made, readable=readable_ids(structure))
    if force and recipe.model.adaptation is not None:
        # The first training begins: interrupted, it is continued without `force`, and nothing old may be in the way.
        _remove(run.lora, run.adapted, run.sparse, run.variants, run.super_adapter)
    return made


def _last_artefact(run: Run, recipe: Recipe) -> tuple[Path, Kind]:
    return (run.super_adapter, "super_adapter") if recipe.adapter else (run.sparse, "sparse")


def _check_texts(recipe: Recipe, made: Mapping[str, Artefact], *, readable: int) -> None:
    """See that there is a row to learn and a window to calibrate on, before pruning rather than after.

    Args:
        recipe: validated.
        made: the base and the tasks.
        readable: how many token ids the model can read.
    """
    tokenizer = load_tokenizer(made["base"].path)
    for artefact, section in zip(_artefacts_of_tasks(recipe, made), recipe.tasks, strict=True):
        if recipe.train is None:
            break
        where = "task" if section is recipe.task else f"data.{section.name}"
        encode = row_encoder(tokenizer, section, classifies=recipe.model.head == "classifier")
        check_rows(artefact.path, "train", encode, readable=readable, where=where)
        if section is recipe.task and recipe.train.eval_steps is not None:
            check_rows(artefact.path, "validation", encode, readable=readable, where=where)
    if recipe.train is not None and recipe.model.head == "language_model":
        _require_beginning(tokenizer, made["base"].path)
    texts = calibration_sections(recipe)
    rows = read_rows(made["task"].path, "train", most_characters=CALIBRATION_CHARACTERS) if texts else []
    for where, text in texts.items():
        check_text(text, rows, tokenizer, classifies=recipe.model.head == "classifier", readable=readable, where=where)


def _require_beginning(tokenizer: Any, base: Path) -> None:
    """The search asks for texts behind a token that begins or ends one."""
    if tokenizer.eos_token_id is None and tokenizer.bos_token_id is None:
        raise ModelUnsupported(
            "its tokenizer names neither a beginning nor an end of text",
            where=base,
            remedy='Give tokenizer_config.json of the source an "eos_token", one of the vocabulary',
        )


def _task_rooms(recipe: Recipe, run: Run) -> list[tuple[str, TaskSection, Path]]:
    """Each task of a recipe, with its role among the artefacts of a run and its place there."""
    others = [(data_role(section.name), section, run.data / section.name) for section in recipe.data]
    return [("task", recipe.task, run.task), *others]


def _import_task(role: str, section: TaskSection, path: Path, chat: ChatRenderer | None, *, force: bool) -> Artefact:
    renderer = chat if section.form == "chat" else None
    where = role.replace("/", ".")
    path.parent.mkdir(parents=True, exist_ok=True)
    return _reuse_or_make(
        path,
        "task",
        _task_facts(section, renderer),
        {},
        lambda: _make_task(section, path, renderer, where=where, force=force),
        as_of_today=partial(stored_section, TaskSection),
        force=force,
    )


def _import_base(recipe: Recipe, source: ModelSource, run: Run, *, force: bool) -> Artefact:
    return _reuse_or_make(
        run.base,
        "base",
        _base_facts(recipe, source, run),
        {},
        lambda: _make_base(recipe, source, run, force=force),
        force=force,
    )


def _freeze(recipe: Recipe, run: Run, made: Mapping[str, Artefact], *, force: bool) -> dict[str, Artefact]:
    """What the super-adapter stands on: the adapted model and the pruned one, where the recipe has them."""
    frozen: dict[str, Artefact] = {}
    if "lora" in made:
        frozen["adapted"] = _reuse_or_make(
            run.adapted,
            "base",
            {},
            {"base": made["base"], "super_adapter": made["lora"]},
            lambda: write_adapted(made["base"], made["lora"], run.adapted, force=force),
            force=force,
        )
    dense, section = frozen.get("adapted", made["base"]), recipe.sparsity
    if section is not None:
        frozen["sparse"] = _prune(section, run, dense, made["task"], seed=recipe.seed, force=force)
    if force and recipe.model.adaptation is None:
        # Later stages take whatever stands in a run.
        left = [] if section is not None else [run.sparse]
        left += [] if recipe.variants is not None else [run.variants]
        _remove(run.super_adapter, run.lora, run.adapted, *left)
    return frozen


def _prune(section: SparsitySection, run: Run, dense: Artefact, task: Artefact, *, seed: int, force: bool) -> Artefact:
    return _reuse_or_make(
        run.sparse,
        "sparse",
        sparsity_inputs(section, seed=seed, texts=_calibration_texts(section, run)),
        {"base": dense},
        lambda: _make_sparse(section, run, dense, task, seed=seed, force=force),
        as_of_today=partial(stored_section, SparsitySection),
        force=force,
    )


def _freeze_variants(recipe: Recipe, run: Run, made: Mapping[str, Artefact], *, force: bool) -> Artefact:
    """The pruned layers at the other ratios of the recipe."""
    section, sparsity, sparse = recipe.variants, recipe.sparsity, made["sparse"]
    if section is None or sparsity is None:
        raise ValueError("the recipe has no [variants]")

    def make() -> None:
        blocks = _calibration(sparsity, sparse, made["task"], seed=recipe.seed)
        write_variants(
            sparse,
            run.variants,
            section=section,
            sparsity=sparsity,
            calibration=blocks,
            seed=recipe.seed,
            force=force,
        )

    return _reuse_or_make(run.variants, "variants", variants_inputs(section), {"sparse": sparse}, make, force=force)


def _reuse_or_make(
    path: Path,
    kind: Kind,
    facts: Mapping[str, Any],
    parents: Mapping[str, Artefact],
    make: Callable[[], object],
    *,
    as_of_today: Callable[[Any], Any] | None = None,
    force: bool,
) -> Artefact:
    if force or not path.exists():
        log.print(f"making {path}")
        make()
        return open_artefact(path, kind=kind)
    artefact = open_artefact(path, kind=kind)
    details = dict(artefact.manifest.details)
    if as_of_today is not None:
        details["recipe"] = as_of_today(details["recipe"])
    other = [FACTS.get(name, name) for name, value in facts.items() if _differs(details.get(name), value)]
    other += [f"its {role}" for role, parent in parents.items() if artefact.manifest.parents.get(role) != parent.sha256]
    if other:
        raise OutputExists(
            f"made from another {', '.join(other)}",
            where=path,
            remedy="Choose another --output, or replace the run with --force",
        )
    log.print(f"reusing {path}")
    return artefact


def _differs(stored: Any, wanted: Any) -> bool:
    if isinstance(stored, dict) and isinstance(wanted, Mapping):
        return any(_differs(stored.get(key), value) for key, value in wanted.items())
    return bool(stored != wanted)


def _task_facts(section: TaskSection, chat: ChatRenderer | None) -> dict[str, Any]:
    if section.path is not None:
        check_data_there(section.path)
    local = section.path if section.dataset is None else Path(section.dataset.name)
    facts = {
        "recipe": section_as_json(section),
        "source_sha256": None if local is None else digest_data(local, whole=section.dataset is not None),
    }
    return facts if chat is None else {**facts, "chat_template_sha256": chat.template_sha256}


def _make_task(section: TaskSection, path: Path, chat: ChatRenderer | None, *, where: str, force: bool) -> None:
    with write_artefact(path, kind="task", force=force) as draft:
        built = build_rows(section, draft.directory, chat=chat, where=where)
        check_answers(section, draft.directory, where=where)
        multiple_choice = section.choices is not None
        write_lm_eval_tasks(
            draft.directory,
            section.name,
            multiple_choice=multiple_choice,
            generated=_generated(section),
            chat=section.form == "chat",
        )
        facts = {
            "name": section.name,
            "multiple_choice": multiple_choice,
            "rows": built.counts,
            "left_out": built.account.counts,
        }
        write_json(draft.directory / "task.json", facts)
        draft.details |= {**facts, **_task_facts(section, chat)}
        counts = ", ".join(f"{count} {split}" for split, count in built.counts.items())
        log.print(f"task {section.name}: {counts} rows")
        sentence = built.account.sentence(built.read)
        if sentence is not None:
            log.print(f"data of {section.name}: {sentence}")


def _generated(task: TaskSection) -> GeneratedAnswer | None:
    if task.answer is None:
        return None
    return GeneratedAnswer(
        pattern=task.answer_pattern,
        match=task.answer_match,
        metric=task.answer_metric,
        ignore=task.answer_ignore,
        max_new_tokens=task.max_new_tokens,
        stop=task.stop,
    )


def _base_facts(recipe: Recipe, source: ModelSource, run: Run) -> dict[str, Any]:
    classes = _classes(recipe)
    return {
        "model_id": recipe.model.model_id,
        # The digest of a large model takes a while, and a base that is not there needs no comparison.
        "source": {"sha256": source_digest(source.path) if run.base.exists() else None},
        "classes": None if classes is None else list(classes),
        "head_seed": None if classes is None else recipe.seed,
    }


def _make_base(recipe: Recipe, source: ModelSource, run: Run, *, force: bool) -> None:
    import_base(
        source.path,
        run.base,
        model_id=recipe.model.model_id,
        license_id=recipe.model.license,
        classes=_classes(recipe),
        seed=recipe.seed,
        force=force,
    )


def _classes(recipe: Recipe) -> tuple[str, ...] | None:
    """Of a classifier, whose head is new."""
    return recipe.task.choices if recipe.model.head == "classifier" else None


def _make_sparse(
    section: SparsitySection, run: Run, dense: Artefact, task: Artefact, *, seed: int, force: bool
) -> None:
    blocks = _calibration(section, dense, task, seed=seed)
    windows: list[Tensor] = []
    if section.healing is not None:
        rows = read_rows(task.path, "train", most_characters=CALIBRATION_CHARACTERS)
        windows = calibration_blocks(
            healing_text(section),
            rows,
            load_tokenizer(dense.path),
            classifies=classifies(dense.path),
            seed=seed + 1,
            where="sparsity.healing",
        )
    write_sparse(
        dense,
        run.sparse,
        section=section,
        calibration=blocks,
        healing=windows,
        texts=_calibration_texts(section, run),
        seed=seed,
        force=force,
    )


def _calibration(section: SparsitySection, model: Artefact, task: Artefact, *, seed: int) -> list[Tensor]:
    """The windows that a pruning method reads; none where it needs none."""
    if not section.measured:
        return []
    rows = read_rows(task.path, "train", most_characters=CALIBRATION_CHARACTERS)
    return calibration_blocks(
        section.calibration,
        rows,
        load_tokenizer(model.path),
        classifies=classifies(model.path),
        seed=seed,
        where="sparsity.calibration",
    )


def _calibration_texts(section: SparsitySection, run: Run) -> list[Path]:
    file, rows = calibration_file(section.calibration), rows_file(run.task, "train")
    if file is None:
        return [rows]
    return [file, rows] if section.calibration.task_rows else [file]


def _check_replaceable(run: Run, recipe: Recipe) -> None:
    kinds: dict[Path, Kind] = {
        run.super_adapter: "super_adapter",
        run.variants: "variants",
        run.sparse: "sparse",
        run.adapted: "base",
        run.lora: "super_adapter",
        run.base: "base",
    }
    tasks: dict[Path, Kind] = {path: "task" for _, _, path in _task_rooms(recipe, run)}
    # A directory of data may hold the run; what lies in the run may go with the artefact that holds it.
    inputs = [item for item in _files_read(recipe) if run.path.resolve() in item.resolve().parents]
    for path, kind in (kinds | tasks).items():
        check_destination(path, kind=kind, force=True, inputs=inputs)
        check_unlocked(path)


def _files_read(recipe: Recipe) -> list[Path]:
    """The model, the data, the calibration texts and the teacher that a recipe names by their paths."""
    teacher = None if recipe.train is None else recipe.train.teacher
    found = [recipe.model.path, None if teacher is None else teacher.path]
    found += [task.path if task.dataset is None else Path(task.dataset.name) for task in recipe.tasks]
    found += [section.path for section in calibration_sections(recipe).values()]
    return [path for path in found if path is not None]


def _remove(*paths: Path) -> None:
    for path in paths:
        remove_artefact(path, unfinished=True)
