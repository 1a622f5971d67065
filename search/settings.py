"""What decides the outcome of a search; defaults come from the recipe of the run."""

from __future__ import annotations

from dataclasses import dataclass

from search.front import BestRule
from search.strategies.strategy import Cost
from shearling.evaluation.precision import Precision
from shearling.recipe import SearchSection


@dataclass(frozen=True)
class SearchSettings:
    """How candidates are chosen and measured.

    Attributes:
        algorithm: a name in SEARCH_ALGORITHMS.
        task: a harness task to optimise for; None is the task of the run.
        evaluations: most sub-networks that the algorithm asks for; a search that was interrupted may be continued with
            more.
        limit: most validation rows that choose, and most that are held back.
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
