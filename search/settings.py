"""What decides the outcome of a search; defaults come from the recipe of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from search.front import BestRule
from search.strategies.strategy import Cost, CostOption
from shearling.artefact import MANIFEST, Artefact, open_artefact
from shearling.elastic.merge_rule import keeps_ranks_apart
from shearling.errors import ShearlingError, UsageError
from shearling.evaluation.precision import Precision
from shearling.evaluation.task import MeasuredSplit, locate_task
from shearling.recipe.search import SearchSection

if TYPE_CHECKING:
    from shearling.elastic.mixture import LayerFormat
    from shearling.elastic.search_space import SearchSpace


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
        cost: what to save, beside accuracy; settled, see `settle`.
        macs_seq_len: tokens of the forward whose MACs are counted.
        max_cost_share: most that a candidate may cost, as a share of the largest one.
        max_bytes: most that the exported weights may take.
        max_latency_ms: most that a forward of the exported model may take, as predicted by the latency table.
        weight_format: of the export whose bytes are counted; None takes that of the latency table, or fp32.
        sparse_kernel: whether its zeros are packed away; None likewise.
        latency_table: read whatever is saved; None takes that of the run, where a latency is predicted, or bytes are
            counted whose form is left open.
        ratios: shares of zeros that each layer chooses among, beside its own; 0 to 1.
        layer_formats: number formats that each layer chooses among.
    """

    algorithm: str
    evaluations: int
    population: int
    seed: int
    limit: int | None
    task: str | None
    batch_size: int
    precision: Precision
    cost: CostOption = "adapter_params"
    macs_seq_len: int = 256
    max_cost_share: float | None = None
    max_bytes: int | None = None
    max_latency_ms: float | None = None
    weight_format: str | None = None
    sparse_kernel: bool | None = None
    latency_table: str | None = None
    split: MeasuredSplit = "validation"
    ratios: tuple[float, ...] = ()
    layer_formats: tuple[LayerFormat, ...] = ()

    @property
    def mixes(self) -> bool:
        """Whether layers choose their zeros or their formats."""
        return bool(self.ratios or self.layer_formats)

    @property
    def predicts_latency(self) -> bool:
        """Whether a latency table is needed."""
        return self.cost == "latency" or self.max_latency_ms is not None

    @property
    def counts_bytes(self) -> bool:
        """Whether bytes decide anything."""
        return self.cost == "bytes" or self.max_bytes is not None


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
        max_bytes=section.max_bytes,
        max_latency_ms=section.max_latency_ms,
        weight_format=section.weight_format,
        sparse_kernel=section.sparse_kernel,
        ratios=section.ratios,
        layer_formats=section.layer_formats,
    )


def recipe_rule(section: SearchSection) -> BestRule:
    """The rule for the best sub-network that a recipe gives."""
    return BestRule(
        prefer=section.prefer, accuracy_delta=section.accuracy_delta, reference_accuracy=section.reference_accuracy
    )


def chosen_rule(section: SearchSection, given: Mapping[str, Any]) -> BestRule:
    """The rule that a recipe gives, but for what is given beside it: a preference takes the place of its delta.

    Args:
        section: of the recipe.
        given: fields of `BestRule`.

    Raises:
        UsageError: a preference and a delta are given, and the delta would decide.
    """
    if "prefer" not in given:
        return replace(recipe_rule(section), **given)
    if "accuracy_delta" in given:
        raise UsageError(
            "with a delta the best is the cheapest within it, whatever is preferred",
            where="--prefer",
            remedy="Give --prefer or --accuracy-delta",
        )
    return replace(recipe_rule(section), **{"accuracy_delta": None, "reference_accuracy": None, **given})


def check_split(settings: SearchSettings, adapter: Artefact) -> None:
    """Refuse to choose by the rows that are to judge what was chosen.

    Args:
        settings: of the search.
        adapter: of the run; its tasks are known by digest, wherever they are.

    Raises:
        UsageError: other than validation rows of a task that the adapter was trained on.
        ArtefactError: the task cannot be read.
    """
    if settings.split == "validation":
        return
    if settings.task is None or _digest(settings.task) in adapter.manifest.parents.values():
        raise UsageError(
            f"the {settings.split} rows of the run judge what a search finds, and it must not see them",
            where="--split",
            remedy="Leave --split out, or name another task with --task",
        )


def _digest(task: str) -> str | None:
    """Of the manifest beside a task; None where it has none."""
    directory = locate_task(task).directory
    if directory is None or not (directory / MANIFEST).is_file():
        return None
    return open_artefact(directory, kind="task", only=()).sha256


def settled_cost(settings: SearchSettings) -> Cost:
    """What is saved, once that is decided.

    Raises:
        ShearlingError: it is not.
    """
    if settings.cost == "auto":
        raise ShearlingError("what is saved has not been decided")
    return settings.cost


def settle(settings: SearchSettings, rule: BestRule, space: SearchSpace, *, sparse: bool) -> SearchSettings:
    """Decide what is saved, where the settings leave it open: multiply-accumulates where sub-networks differ in them.

    Ranks that are merged cost nothing at inference, whatever they are; there accuracy alone counts. Where layers choose
    their formats, or zeros that are packed away, it is bytes; where they choose zeros that are stored, weights that are
    none.

    Args:
        settings: as they were given.
        rule: which sub-network is the best.
        space: of the sub-networks.
        sparse: whether the model under them is pruned.

    Raises:
        UsageError: less is asked for of a cost, and nothing is saved; or a number format that layers do not choose.
    """
    if settings.layer_formats and settings.weight_format not in (None, *settings.layer_formats):
        raise UsageError(
            f"layers choose among {', '.join(settings.layer_formats)}, not {settings.weight_format}",
            where="weight_format",
            remedy="Leave it out",
        )
    differ = bool(space.width_groups) or keeps_ranks_apart(space, sparse=sparse)
    cost: Cost = settings.cost if settings.cost != "auto" else "macs" if differ else "none"
    if settings.cost == "auto" and settings.mixes:
        cost = "bytes" if settings.layer_formats or settings.sparse_kernel else "nonzero_params"
    if cost == "none":
        needing = {
            "max_cost_share": settings.max_cost_share is not None,
            "accuracy_delta": rule.accuracy_delta is not None,
            "prefer": rule.prefer == "cheaper",
        }
        for name in (name for name, needed in needing.items() if needed):
            raise UsageError(
                "nothing is saved: ranks that are merged cost nothing at inference"
                if not differ
                else "nothing is saved",
                where=name,
                remedy="Say what to save with --cost, such as adapter_params",
            )
    return replace(settings, cost=cost)
