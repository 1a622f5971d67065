"""What sub-networks may cost, by the settings of a search; a limit that none keeps is refused at once."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from search.cost_words import COSTS
from search.front import BestRule
from search.objective import SubnetObjective
from search.settings import SearchSettings
from search.strategies.cost_limit import Bound, CostLimit, find_cheapest
from search.strategies.grid import Grid
from search.strategies.strategy import Cost
from shearling.errors import ArtefactMissing, NoCandidate
from shearling.run import Run


def find_table(run: Run, settings: SearchSettings) -> Path | None:
    """The latency table of a search; None where it names none, predicts no latency and counts no bytes by one.

    Raises:
        ArtefactMissing: there is none.
    """
    named = settings.latency_table is not None
    table = Path(settings.latency_table) if settings.latency_table is not None else run.latency
    counts_by_table = settings.counts_bytes and settings.weight_format is None and not settings.mixes
    if not (named or settings.predicts_latency or (counts_by_table and table.exists())):
        return None
    if not table.exists():
        raise ArtefactMissing(
            "this is to be the latency table, and there is none here"
            if named
            else "a latency is predicted from a table, and there is none here",
            where=table,
            remedy="Measure one on the target: python -m search latency --run RUN --model EXPORT",
        )
    return table


def make_limit(settings: SearchSettings, objective: SubnetObjective, grid: Grid) -> CostLimit | None:
    """What every candidate has to keep; None where nothing is limited.

    Raises:
        NoCandidate: no sub-network keeps it.
    """
    bounds = []
    # Before the others: `limited_rule` looks for it there.
    if settings.max_cost_share is not None:
        bounds.append(Bound.of_share(settings.max_cost_share, objective.count, grid))
    limits: list[tuple[Cost, float | None, str]] = [
        ("bytes", settings.max_bytes, "max_bytes"),
        ("latency", settings.max_latency_ms, "max_latency_ms"),
    ]
    for cost, most, where in limits:
        if most is not None:
            count = partial(objective.counter.count, cost=cost)
            bounds.append(Bound.below(most, count, show=COSTS[cost].show, where=where))
    return CostLimit.of(bounds, grid) if bounds else None


def limited_rule(rule: BestRule, settings: SearchSettings, limit: CostLimit | None) -> BestRule:
    """The rule for the best, with the same limits."""
    share = None if limit is None or settings.max_cost_share is None else limit.bounds[0].most
    return replace(rule, max_cost=share, max_bytes=settings.max_bytes, max_latency_ms=settings.max_latency_ms)


def check_params(rule: BestRule, objective: SubnetObjective, grid: Grid) -> None:
    """Refuse a limit on the adapter that no sub-network keeps.

    Raises:
        NoCandidate: see above.
    """
    if rule.max_params is None:
        return
    count = partial(objective.counter.count, cost="adapter_params")
    least = int(count(find_cheapest(count, grid)))
    if least > rule.max_params:
        raise NoCandidate(
            f"the smallest sub-network has {least} adapter parameters, more than {rule.max_params}",
            where="max_params",
            remedy="Ask for less, or train with smaller ranks; nothing was evaluated",
        )
