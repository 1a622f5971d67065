"""The door of the stage: what a search reads is opened and verified here, once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pydantic

from search.latency.table import LatencyTable, open_table
from shearling.artefact import MANIFEST, Artefact, open_artefact
from shearling.elastic.merge_rule import keeps_ranks_apart
from shearling.elastic.mixture import LayerFormat, Mixture, open_mixture, percents_of_ratios
from shearling.elastic.search_space import SEARCH_SPACE_FILE, SearchSpace, read_search_space
from shearling.errors import ArtefactMismatch
from shearling.evaluation.lm_eval_task import evaluated_files
from shearling.model.head import Head, read_head
from shearling.recipe.search import SearchSection
from shearling.run import Run, open_frozen
from shearling.strict_json import describe_validation_error


@dataclass(frozen=True)
class SearchableRun:
    """A run with a super-adapter.

    Attributes:
        run: where it is.
        adapter: verified.
        space: of the adapter.
        section: [search] of the recipe that the adapter was trained by.
        mixture: what layers choose among; `space` is its space then.
    """

    run: Run
    adapter: Artefact
    space: SearchSpace
    section: SearchSection
    mixture: Mixture | None = None

    def mixed(self, *, ratios: Sequence[float], formats: Sequence[LayerFormat]) -> SearchableRun:
        """With a share of zeros and a number format for each layer to choose, where there are any.

        Raises:
            UsageError, ArtefactError: see `open_mixture`.
        """
        if not ratios and not formats:
            return self
        percents = percents_of_ratios(ratios)
        mixture = open_mixture(self.space, open_frozen(self.adapter), percents=percents, formats=formats)
        return replace(self, space=mixture.space, mixture=mixture)


@dataclass(frozen=True)
class SearchInputs:
    """What candidates are made of and measured on.

    Attributes:
        space: of the adapter.
        frozen: the model under the adapter, verified.
        task: its validation split, verified; None where a task of the harness takes its place.
        latency: how long the forms of the layers take; None where nobody asks.
        variants: of the frozen model, where layers choose among them.
    """

    adapter: Artefact
    space: SearchSpace
    frozen: Artefact
    task: Artefact | None
    latency: LatencyTable | None = None
    variants: Artefact | None = None

    @property
    def parents(self) -> dict[str, Artefact]:
        """By role, for the manifest."""
        task = {} if self.task is None else {"task": self.task}
        variants = {} if self.variants is None else {"variants": self.variants}
        return {"super_adapter": self.adapter, self.frozen.manifest.kind: self.frozen, **variants, **task}

    @property
    def files(self) -> dict[str, Path]:
        """Every file that is read of the run, the rows of other splits not among them: path inside the run -> file."""
        whole_ones = [self.adapter, self.frozen, *([] if self.variants is None else [self.variants])]
        found = [path for whole in whole_ones for path in _files_of(whole, whole.manifest.files)]
        if self.task is not None:
            found += _files_of(self.task, searched_files(self.task))
        return {path.relative_to(self.adapter.path.parent).as_posix(): path.resolve() for path in found}

    @property
    def head(self) -> Head:
        """What the model is for."""
        return read_head(self.frozen.path)


def open_run(run: Run) -> SearchableRun:
    """Open the super-adapter of a run.

    Raises:
        ArtefactError: it is missing or damaged.
    """
    adapter = open_artefact(run.super_adapter, kind="super_adapter")
    try:
        section = SearchSection.model_validate(adapter.manifest.details.get("search") or {})
    except pydantic.ValidationError as error:
        raise ArtefactMismatch(
            f"the recipe that it was trained by asks for a search that is not known here: "
            f"{describe_validation_error(error)}",
            where=adapter.path,
            remedy="Install the package that brings it",
        ) from None
    return SearchableRun(run, adapter, read_search_space(adapter.path / SEARCH_SPACE_FILE), section)


def open_inputs(opened: SearchableRun, *, task: str | None, latency: Path | None = None) -> SearchInputs:
    """Open what the super-adapter stands on.

    Args:
        opened: the run.
        task: of the harness, instead of the run's.
        latency: the latency table, where one is needed.

    Raises:
        ArtefactMismatch: the run's task or its frozen model is not the one that the adapter was trained on, or the
            latency table was measured for another model.
        ArtefactError: one of them is missing or damaged.
    """
    found = _open_task(opened) if task is None else None
    frozen = open_frozen(opened.adapter)
    separate = keeps_ranks_apart(opened.space, sparse=frozen.manifest.kind == "sparse")
    table = None if latency is None else open_table(latency, frozen=frozen, separate=separate)
    variants = None if opened.mixture is None else opened.mixture.variants
    return SearchInputs(opened.adapter, opened.space, frozen, found, table, variants)


def _open_task(opened: SearchableRun) -> Artefact:
    # The validation split alone: a search must work the same with the test rows absent.
    listed = open_artefact(opened.run.task, kind="task", only=())
    if opened.adapter.manifest.parents["task"] != listed.sha256:
        # Its validation rows may be what the adapter has learnt.
        raise ArtefactMismatch(
            "the super-adapter was trained on another task",
            where=opened.run.task,
            remedy="Train again, or name a task with --task",
        )
    return open_artefact(opened.run.task, kind="task", only=searched_files(listed))


def searched_files(task: Artefact) -> tuple[str, ...]:
    """Names of those files of a task that a search reads."""
    return evaluated_files(task.manifest.files, str(task.manifest.details["name"]), "validation")


def _files_of(artefact: Artefact, names: Iterable[str]) -> list[Path]:
    return [artefact.path / name for name in (MANIFEST, *names)]
