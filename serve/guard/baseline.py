"""History on one machine: is it slower than it used to be here?

`baseline.json` holds what earlier checks measured. Nothing ran side by side, so drift of the machine between the days
is inside the comparison, see `serve.guard.history_ratio`. A history of one day does not know it; prefer a reference to
run beside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import pydantic

from serve.bench.benchmark import Benchmark, block_values, run_benchmark
from serve.bench.environment import Environment, describe_environment, differing_versions
from serve.bench.measurement import Sample
from serve.bench.statistics import Estimate
from serve.bench.workload import DOCUMENT_BYTES, Workload
from serve.guard.history_ratio import Times, blocks_to_settle, history_ratio, of_the_same_prompts
from serve.guard.judging import GUARDED
from serve.guard.machine_lock import measuring_alone
from serve.guard.other_settings import with_other_settings
from serve.guard.regression import CheckOutcome, Verdict, require_threshold, rounded_up, worst
from serve.guard.sequential import MINIMUM, planned_looks
from serve.runtimes.runtime import RunOptions
from shearling.artefact import utc_now
from shearling.destination import require_writable
from shearling.errors import ArtefactMissing, UsageError
from shearling.strict_json import Document, read_document, write_document
from shearling.target import Target

SCHEMA = "shearling.baseline/1"
DECISIVE = ("openvino", "openvino-genai", "onnxruntime", "onnxruntime-gpu", "onnxruntime-genai", "torch")
FIRST_BLOCKS = planned_looks()[0]
"""As many as the first look of a check needs; a history begins with so many. What is open then goes on to the end."""


class BaselineEntry(Document):
    """One measurement of the past.

    Attributes:
        values: by metric, one for each block.
    """

    created: str
    label: str
    weights_sha256: str
    values: dict[str, tuple[Annotated[float, pydantic.Field(gt=0)], ...]]

    @pydantic.field_validator("values")
    @classmethod
    def _one_for_each_block(cls, values: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        if set(values) != set(GUARDED):
            raise ValueError(f"it holds {', '.join(values) or 'nothing'}, and needs {', '.join(GUARDED)}: record anew")
        if len({len(own) for own in values.values()}) != 1:
            raise ValueError("its metrics are of different numbers of blocks")
        return values


class Baseline(Document):
    """The content of `baseline.json`.

    Attributes:
        runtime: what measured, by its own account, in whatever environment; None in files of before it was kept.
        precision: of the arithmetic, as executed; likewise.
        properties: of the deployment, those that a known crash asked for included; likewise.
    """

    schema_: Literal["shearling.baseline/1"] = pydantic.Field("shearling.baseline/1", alias="schema")
    environment: Environment
    runtime: str | None = None
    precision: str | None = None
    properties: dict[str, str] | None = None
    options: RunOptions
    workload: Workload
    entries: tuple[BaselineEntry, ...] = pydantic.Field(min_length=1)


def check_baseline(
    candidate: Target,
    path: Path,
    *,
    max_ratio: float,
    options: RunOptions,
    workload: Workload,
    record: bool = False,
    allow_other_versions: bool = False,
) -> tuple[Verdict, Benchmark]:
    """Measure a deployment alone, and judge it against the history in `path`.

    Args:
        candidate: what may have become slower.
        path: `baseline.json`; may be absent where `record` is true: then this measurement begins it.
        max_ratio: largest acceptable time over that of the history.
        options: those of the history.
        workload: that of the history; see `guard_workload`.
        record: add this measurement if it passes.
        allow_other_versions: accept a history of other runtime versions, to which nothing is added.

    Raises:
        ArtefactMissing: no history, and `record` is false.
        UsageError: the history is of another machine, other versions, options, properties or work, or cannot be
            written.
        RuntimeCrashed: a process died, and there are no other settings that the history was measured with.
    """
    require_threshold(max_ratio)
    if not record and not path.exists():
        raise ArtefactMissing("no baseline here", where=path, remedy="Begin one with --record")
    if record:
        require_writable(path, whole=True)
    # Whoever waits here for another check reads what that one has recorded.
    with measuring_alone():
        history = read_document(path, Baseline, schema=SCHEMA, max_bytes=DOCUMENT_BYTES) if path.exists() else None
        # A history is of one set of versions, whatever it is compared with.
        others = allow_other_versions and not record
        if history is not None:
            _require_enough(history, where=path)
            _require_same_place(history, candidate, workload, where=path, allow_other_versions=others)

        def clear(samples: Sequence[Sample]) -> bool:
            if len(samples) != FIRST_BLOCKS or history is None:
                return len(samples) == FIRST_BLOCKS
            return worst(_outcomes(_ratios(history, samples, workload), max_ratio).values()) != "inconclusive"

        # A history knows its settings: another one would compare them, not the model.
        benchmark, changes = with_other_settings(
            lambda tried: run_benchmark([candidate], options=tried, workload=workload, enough=clear),
            options,
            allowed=lambda tried: history is None or history.options == tried,
        )
        if history is not None:
            _require_same_run(history, benchmark, where=path, allow_other_versions=others)
        verdict = _judge(history, benchmark, max_ratio=max_ratio)
        verdict = verdict.model_copy(update={"changes": (*changes, *verdict.changes)})
        if record and verdict.outcome == "pass":
            entries = (*(history.entries if history else ()), _entry(benchmark))
            # The settings that it ran with, not those asked for: the next check changes them likewise, or is refused.
            measured = benchmark.subjects[0]
            added = Baseline(
                environment=benchmark.environment,
                runtime=measured.facts.runtime,
                precision=measured.facts.precision,
                properties=measured.deployment.properties,
                options=benchmark.options,
                workload=workload,
                entries=entries,
            )
            write_document(path, added)
    return verdict, benchmark


def _require_same_place(
    history: Baseline, candidate: Target, workload: Workload, *, where: Path, allow_other_versions: bool
) -> None:
    """Refuse what can be known before anything is measured."""
    here = describe_environment()
    if history.environment.machine_id != here.machine_id:
        raise UsageError(
            f"the baseline is of another machine ({history.environment.cpu}; this is {here.cpu})",
            where=where,
            remedy="Record one here with --record, or compare side by side with --against",
        )
    # What is installed here says nothing of another environment.
    if candidate.environment is None and not allow_other_versions:
        differing = differing_versions(history.environment.versions, here.versions)
        changed = {name: pair for name, pair in differing.items() if name in DECISIVE}
        _refuse_changes([f"{name} {past} -> {own}" for name, (past, own) in changed.items()], where=where)
    _require_same_flags(history.workload.model_copy(update={"budget_s": workload.budget_s}), workload, where=where)


def _require_enough(history: Baseline, *, where: Path) -> None:
    """Refuse a past that nothing can be judged by: a median of few blocks says little, and its bootstrap nothing."""
    fewest = min(len(values) for entry in history.entries for values in entry.values.values())
    if fewest < MINIMUM:
        raise UsageError(
            f"a measurement in it has {fewest} blocks, fewer than {MINIMUM}",
            where=where,
            remedy="Remove it, and record anew with a longer --budget",
        )


def _require_same_run(history: Baseline, benchmark: Benchmark, *, where: Path, allow_other_versions: bool) -> None:
    """Refuse what the measuring process alone can tell: its runtime, and the settings that it did not die with."""
    measured = benchmark.subjects[0]
    runtime = measured.facts.runtime
    if history.runtime not in (None, runtime) and not allow_other_versions:
        _refuse_changes([f"{history.runtime} -> {runtime}"], where=where)
    _require_same_flags(history.options, benchmark.options, where=where)
    then, now = history.properties, measured.deployment.properties
    if then is None and benchmark.changes:
        raise UsageError(
            f"nothing says whether the baseline was {benchmark.changes[0]}",
            where=where,
            remedy="Record anew in another file, or compare side by side with --against",
        )
    if then not in (None, now) or history.precision not in (None, measured.facts.precision):
        _refuse_properties(history, measured.facts.precision, now, where=where)


def _refuse_changes(changed: list[str], *, where: Path) -> None:
    if changed:
        raise UsageError(
            f"the baseline is of other versions: {', '.join(changed)}",
            where=where,
            remedy="Give --allow-other-versions without --record, or record anew in another file",
        )


def _require_same_flags(then: Document, now: Document, *, where: Path) -> None:
    differing = [name for name in type(now).model_fields if getattr(then, name) != getattr(now, name)]
    # A trace is too long to be shown.
    told = [
        f"another {name}" if name == "trace" else f"{name} {getattr(then, name)} (here {getattr(now, name)})"
        for name in differing
    ]
    if told:
        raise UsageError(
            f"the baseline was measured with other flags: {', '.join(told)}",
            where=where,
            remedy="Give those, or record anew in another file",
        )


def _refuse_properties(history: Baseline, precision: str, properties: Mapping[str, str], *, where: Path) -> NoReturn:
    def told(executed: str | None, own: Mapping[str, str] | None) -> str:
        return ", ".join([executed or "unknown", *(f"{name}={value}" for name, value in (own or {}).items())])

    raise UsageError(
        f"the baseline was measured in {told(history.precision, history.properties)}; this ran in "
        f"{told(precision, properties)}",
        where=where,
        remedy="Give the properties of its first --record, record anew in another file, or compare side by side with "
        "--against",
    )


def _judge(history: Baseline | None, benchmark: Benchmark, *, max_ratio: float) -> Verdict:
    samples, workload = benchmark.samples, benchmark.workload
    # The first measurement is its own history: it passes by definition, if there is enough of it to judge others by.
    ratios = _ratios(history, samples, workload)
    outcomes = _outcomes(ratios, max_ratio if history else math.inf)
    wall_s = sum(sample.ttft_s + sum(sample.gaps_s) for sample in samples)
    measured_s = max(sample.started_s + sample.total_s for sample in samples)
    blocks = _blocks_to_settle(history, samples, outcomes, max_ratio=max_ratio, workload=workload)
    return Verdict(
        outcome=worst(outcomes.values()),
        outcomes=outcomes,
        ratios=ratios,
        sessions=(),
        max_ratio=max_ratio,
        limits=dict.fromkeys(GUARDED, max_ratio),
        changes=benchmark.changes,
        blocks=len(samples),
        lost_share=sum(sample.lost_first_s + sample.lost_decode_s for sample in samples) / wall_s,
        measured_s=measured_s,
        settling_budget_s=rounded_up(None if blocks is None else blocks * measured_s / len(samples)),
        past=len(history.entries) if history else 0,
        huge_shares=benchmark.huge_shares(("candidate",)),
    )


def _ratios(history: Baseline | None, samples: Sequence[Sample], workload: Workload) -> dict[str, Estimate]:
    return {name: history_ratio(now, then) for name, (now, then) in _sides(history, samples, workload).items()}


def _sides(
    history: Baseline | None, samples: Sequence[Sample], workload: Workload
) -> dict[str, tuple[Times, list[Times]]]:
    """By metric, this measurement and those of the past; of a trace the prompts alone that all of them have reached,
    each equally often.
    """
    own = _values(samples)
    measurements = [own, *([entry.values for entry in history.entries] if history else [own])]
    prompts = len(workload.trace) or 1
    found = {
        name: of_the_same_prompts(
            [values[name] for values in measurements], prompts=prompts, blocks_each=workload.repeats
        )
        for name in own
    }
    return {name: (now, then) for name, (now, *then) in found.items()}


def _outcomes(ratios: Mapping[str, Estimate], max_ratio: float) -> dict[str, CheckOutcome]:
    return {name: _outcome(ratio, max_ratio) for name, ratio in ratios.items()}


def _blocks_to_settle(
    history: Baseline | None,
    samples: Sequence[Sample],
    outcomes: Mapping[str, CheckOutcome],
    *,
    max_ratio: float,
    workload: Workload,
) -> int | None:
    """Of a new measurement; None where nothing is open, or no number would settle it."""
    if worst(outcomes.values()) != "inconclusive":
        return None
    if len(samples) < MINIMUM or history is None:
        return FIRST_BLOCKS
    sides = [side for name, side in _sides(history, samples, workload).items() if outcomes[name] == "inconclusive"]
    # Of those of a trace some do not count.
    share = len(sides[0][0].values) / len(samples)
    most = math.floor(workload.sessions * workload.repeats * share)
    needed = [blocks_to_settle(now, then, max_ratio=max_ratio, most=most) for now, then in sides]
    return None if None in needed else math.ceil(max(count for count in needed if count is not None) / share)


def _outcome(ratio: Estimate, max_ratio: float) -> CheckOutcome:
    if ratio.samples < MINIMUM:
        return "inconclusive"
    return "pass" if ratio.high <= max_ratio else "regression" if ratio.low > max_ratio else "inconclusive"


def _entry(benchmark: Benchmark) -> BaselineEntry:
    deployment = benchmark.subjects[0].deployment
    return BaselineEntry(
        created=utc_now(),
        label=deployment.label,
        weights_sha256=deployment.weights_sha256,
        values=_values(benchmark.samples),
    )


def _values(samples: Sequence[Sample]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(block_values(samples, 0, value)) for name, value in GUARDED.items()}
