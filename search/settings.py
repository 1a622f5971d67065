"""What decides the outcome of a search; defaults come from the recipe of the run."""

from __future__ import annotations

from dataclasses import dataclass

from search.front import BestRule
from search.strategies.strategy import Cost
from shearling.errors import UsageError
from shearling.evaluation.precision import Precision
from shearling.evaluation.task import MeasuredSplit
from shearling.recipe.search import SearchSection


@dataclass(frozen=True)
class SearchSettings:
    """How candidates are chosen and measured.

    Attributes:
        algorithm: a name in SEARCH_ALGORITHMS.
        task: to optimise for instead of the run's; a name of the harness, or a path as `locate_task` takes it.
        split: which rows of that task; those of the run are its validation rows.
        evaluations: most sub-networks that the algorithm asks for; a search that was interrupted may be continued with
            more.
        limit: most of those rows that choose, and most that are held back.
        cost: what to save, beside accuracy.
        macs_seq_len: tokens of the forward whose MACs are counted or whose time is taken.
        max_cost_share: most that a candidate may cost, as a share of the largest one.
    """

    algorithm: str
    evaluations: int
    population: int
    seed: int
    limit: int | None
    task: str | None
    batch_size: int
    precision: Precision
    cost: Cost = "adapter_params"
    macs_seq_len: int = 256
    max_cost_share: float | None = None
    split: MeasuredSplit = "validation"


def recipe_settings(section: SearchSection) -> SearchSettings:
    """The settings that a recipe gives."""
    return SearchSettings(
        algorithm=section.algorithm,
        evaluations=section.evaluations,
        population=section.population,
        seed=section.seed,
        limit=section.limit,
        task=None,
        batch_size=section.batch_size,
        precision=section.precision,
        cost=section.cost,
        macs_seq_len=section.macs_seq_len,
        max_cost_share=section.max_cost_share,
    )


def recipe_rule(section: SearchSection) -> BestRule:
    """The rule for the best sub-network that a recipe gives."""
    return BestRule(
        prefer=section.prefer, accuracy_delta=section.accuracy_delta, reference_accuracy=section.reference_accuracy
    )


def check_split(settings: SearchSettings) -> None:
    """Refuse to choose by the rows that are to judge what was chosen.

    Raises:
        UsageError: other than validation rows of the run's own task.
    """
    if settings.split != "validation" and settings.task is None:
        raise UsageError(
            f"the {settings.split} rows of the run judge what a search finds, and it must not see them",
            where="--split",
            remedy="Leave --split out, or name another task with --task",
        )
