"""Tasks of lm-evaluation-harness: those beside a run's rows, task files from anywhere, and what the harness brings."""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shearling.console import log
from shearling.errors import ArtefactMissing, DocumentInvalid, ShearlingError, UsageError
from shearling.evaluation.task import SPLITS, TASK_FILE, Split

HARNESS_SPLITS: Mapping[Split, str] = {"train": "training", "validation": "validation", "test": "test"}
SOURCE = "config_source"
"""In the metadata of a task: the file that it was read from."""
ANSWERED = ("generate_until", "loglikelihood")
"""Types of tasks whose answer is a text."""
FILE_FORMATS = ("json", "csv", "parquet", "text")
"""What the `datasets` library reads from files."""


def load_harness_task(task: str, *, split: Split, include_path: Path | None, name: str) -> Any:
    """Find a task and its data on this machine, and build it.

    Args:
        task: as a user names it.
        split: which rows; it has these or is refused.
        include_path: directory of task files, such as `RUN/task`; None where the harness knows the task.
        name: of the task if it is one of a run, whose splits are tasks of their own; tried before `task`.

    Raises:
        UsageError: no such task, or it has no such split, or it is a group of tasks.
        ArtefactMissing: its data is not on this machine.
        DocumentInvalid: it is none of a run, and its file or its data is faulty. So it may be when it is asked.
    """
    manager = _task_manager(include_path)
    own = name in manager.all_subtasks and include_path is not None and (include_path / TASK_FILE).is_file()
    if name not in manager.all_subtasks:
        name = task
        if name not in manager.all_subtasks:
            manager = _task_manager(None)
    if name in manager.all_groups or name in manager.all_tags:
        raise UsageError("this is a group of tasks", where=f"task {name}", remedy="Name one of its tasks")
    if name not in manager.all_subtasks:
        raise UsageError("no such task", where=f"task {name}", remedy="List them with: lm_eval ls tasks")
    if own:
        return _build_task(name, manager, split)
    where = manager.task_index[name].yaml_path or f"task {name}"
    with _faults_named(where):
        task = _build_task(name, manager, split)
    for step in ("build_all_requests", "apply_filters", "process_results"):
        setattr(task, step, _naming_faults(getattr(task, step), where))
    return task


def check_answers(task: Any, rows: int) -> None:
    """Refuse a task without right answers, and say how many of its rows have none.

    The harness counts such a row as wrong, whatever a model says, and a target that names no column as itself.

    Args:
        task: see `load_harness_task`.
        rows: how many of them are asked.

    Raises:
        DocumentInvalid: no row has one.
    """
    from lm_eval.api.task import ConfigurableTask

    config = task.config
    # What is a class, or has a function of its own, may read its rows in its own way.
    if type(task) is not ConfigurableTask or config.process_results is not None or task.multiple_input:
        return
    where = (config.metadata or {}).get(SOURCE) or f"task {config.task}"
    if config.output_type == "multiple_choice":
        _check_choices(task, rows, where)
    target = config.doc_to_target
    named = isinstance(target, str) and target.isidentifier()
    if config.output_type in ANSWERED and named and target not in task.features:
        raise DocumentInvalid(
            f"doc_to_target names no column: {target!r}", where=where, remedy=f"There are: {', '.join(task.features)}"
        )


def _check_choices(task: Any, rows: int, where: str) -> None:
    with _faults_named(where):
        documents = task.eval_docs
        wrong = [place for place in range(rows) if not _has_answer(task, documents[place])]
        if not wrong:
            return
        first = documents[wrong[0]]
        told = f"{task.doc_to_target(first)!r} is none of the choices {task.doc_to_choice(first)!r}"
    if len(wrong) == rows:
        raise DocumentInvalid(
            f"no row has a right answer: {told}", where=where, remedy="Correct doc_to_target or doc_to_choice"
        )
    log.print(f"{where}: {len(wrong)} of {rows} rows have no right answer, and count as wrong: {told}")


def _has_answer(task: Any, document: Any) -> bool:
    gold, choices = task.doc_to_target(document), task.doc_to_choice(document)
    given = gold if isinstance(gold, list) else [gold]
    return all(0 <= item < len(choices) if isinstance(item, int) else item in choices for item in given)


@contextmanager
def _faults_named(where: str | Path) -> Iterator[None]:
    """What a task file of a user's own gets wrong is no defect of ours."""
    try:
        yield
    except (ShearlingError, MemoryError):
        raise
    except Exception as error:
        # `datasets` says that something went wrong, and its cause what.
        cause = error.__cause__ or error
        told = f"{type(cause).__name__}: {cause}".rstrip(": .")
        raise DocumentInvalid(
            f"the task or its data is faulty: {told}",
            where=where,
            remedy="Correct the file; lm-evaluation-harness says what stands in it",
        ) from error


def _naming_faults(step: Callable[..., Any], where: str | Path) -> Callable[..., Any]:
    @functools.wraps(step)
    def named(*arguments: Any, **options: Any) -> Any:
        with _faults_named(where):
            return step(*arguments, **options)

    return named


def digest_document(document: Any) -> str:
    """The sha256 of the content of a row, as the harness gives it."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()


@functools.cache
def _known_tasks() -> Any:
    # Parses the harness's thousands of task files, which takes seconds: once, and only where the run has no such task.
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _task_manager(include_path: Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    return (
        _known_tasks() if include_path is None else TaskManager(include_path=str(include_path), include_defaults=False)
    )


def _build_task(name: str, manager: Any, split: Split) -> Any:
    entry = manager.task_index[name]
    config = entry.cfg or {}
    # A task that is a class says what it has when it is built.
    if "class" not in config:
        _check_split(
            split, {other for other in SPLITS if config.get(f"{HARNESS_SPLITS[other]}_split") is not None}, name
        )
    overrides = {"task": name, **_local_data(entry)}
    if split == "validation":
        # The harness prefers a test split where there is one.
        overrides["test_split"] = None
    with tempfile.TemporaryDirectory() as cache:
        if "dataset_kwargs" in overrides:
            overrides["dataset_kwargs"] |= {"cache_dir": cache, "keep_in_memory": True}
        try:
            built = manager._factory.build(entry, overrides=overrides, registry=manager.task_index)
        except (OSError, ConnectionError) as error:
            raise ArtefactMissing(
                f"the data of this task is not on this machine: {error}", where=f"task {name}"
            ) from error
    _check_split(split, {other for other in SPLITS if getattr(built, f"has_{HARNESS_SPLITS[other]}_docs")()}, name)
    _draw_examples_by_row(built, split)
    return built


def _draw_examples_by_row(task: Any, split: Split) -> None:
    """Let a row have the same few-shot examples whenever, wherever and beside whatever other rows it is asked, never
    itself.

    The harness draws them one row after the other, from a generator that starts anywhere, and leaves the row itself out
    where examples are test rows, not where they are the validation rows that are asked.
    """
    written = task.fewshot_context

    @functools.wraps(written)
    def write(document: Any, *arguments: Any, **options: Any) -> Any:
        task.set_fewshot_seed(int(digest_document(document)[:16], 16))
        if not _examples_are_rows(task, split):
            return written(document, *arguments, **options)
        drawn = task.sampler.sample
        # `eval_doc` is what is left out.
        task.sampler.sample = lambda *given, **chosen: drawn(*given, **{**chosen, "eval_doc": document})
        try:
            return written(document, *arguments, **options)
        finally:
            task.sampler.sample = drawn

    task.fewshot_context = write


def _examples_are_rows(task: Any, split: Split) -> bool:
    """Whether few-shot examples are drawn from the rows that are asked."""
    examples = getattr(task, "fewshot_cfg", None)
    if examples is None:  # a task that is a class of its own
        return False
    if examples.split is not None:
        return bool(examples.split == getattr(task.config, f"{HARNESS_SPLITS[split]}_split"))
    others = task.has_training_docs() or (split == "test" and task.has_validation_docs())
    return examples.samples is None and not others


def _check_split(split: Split, has: Set[Split], name: str) -> None:
    if split in has:
        return
    remedy = "Name a task that has one"
    if split == "validation" and "test" in has:
        remedy += ", or take its test rows with --split test: after that they are no test"
    there = ", ".join(sorted(has)) or "none"
    raise UsageError(f"this task has no {split} split: it has {there}", where=f"task {name}", remedy=remedy)


def _local_data(entry: Any) -> dict[str, Any]:
    # The harness resolves data files against the working directory; a task file means those beside it.
    config = entry.cfg or {}
    kwargs = config.get("dataset_kwargs") or {}
    if config.get("dataset_path") not in FILE_FORMATS or "data_files" not in kwargs or entry.yaml_path is None:
        return {}
    return {"dataset_kwargs": {**kwargs, "data_files": _anchored(kwargs["data_files"], Path(entry.yaml_path).parent)}}


def _anchored(files: Any, directory: Path) -> Any:
    """One path, several, or either by split, as the harness takes them."""
    if isinstance(files, dict):
        return {split: _anchored(named, directory) for split, named in files.items()}
    if isinstance(files, list):
        return [_anchored(named, directory) for named in files]
    if "://" in str(files):
        return files
    path = directory / str(files)
    if not path.is_file():
        raise ArtefactMissing("the data of this task is missing", where=path)
    # `datasets` takes it for a pattern.
    return glob.escape(str(path))
