"""Throughput against latency: so many requests in flight at once, through OpenVINO GenAI's continuous batching.

Every level keeps its number of requests in flight to its end: one that finishes is replaced at once. Nothing is counted
before the requests are at different places of their answers, as those of strangers are: the answers of the first ones
are cut to lengths from short to whole. Started together, all would read their prompts in the same steps and none beside
another's answer, for as long as the level lasts. Times of a request are GenAI's own (perf_metrics of its handle, from
the moment it was added); the throughput is counted here, from the end of one request to that of another. Each prompt is
random and new, and prefixes are not cached.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pydantic

from serve.bench.environment import Environment, describe_environment
from serve.bench.statistics import percentile
from serve.bench.workload import Prompts, make_workload
from serve.runtimes.deployment import Deployment, find_deployment
from serve.runtimes.device import check_device
from serve.runtimes.runtime import RunOptions, RuntimeFacts
from shearling.artefact import utc_now, write_artefact
from shearling.console import Advance, progress
from shearling.errors import UsageError
from shearling.kernel.runtime_refusal import refusals
from shearling.strict_json import Document, write_document
from shearling.target import Target

if TYPE_CHECKING:
    from openvino_genai import ContinuousBatchingPipeline, GenerationHandle

FILE = "load_curve.json"
SHARES = (50, 90, 99)


@dataclass(frozen=True, kw_only=True)
class LoadWork:
    """What is asked of a model.

    Attributes:
        concurrency: requests in flight, each at least 1; one level for each.
        requests: at least so many of each level; a level has no fewer than twice its concurrency.
        prompt_tokens: random ids.
        new_tokens: at least 2.
        seed: of the prompts.
    """

    concurrency: Sequence[int]
    requests: int
    prompt_tokens: int
    new_tokens: int
    seed: int = 0


class Level(Document):
    """One number of requests in flight.

    Attributes:
        requests: completed in that time, at least as many as were wanted.
        wall_s: from the end of the last request that is not counted to that of the last one.
        tokens_per_s: new tokens of these requests over the wall time.
        ttft_s: p50, p90, p99 over requests; waiting for a place in a batch included.
        tpot_s: likewise, of each request's mean time per token after its first.
    """

    concurrency: int
    requests: int
    wall_s: float
    tokens_per_s: float
    ttft_s: dict[str, float]
    tpot_s: dict[str, float]


class LoadCurve(Document):
    """The content of `load_curve.json`."""

    schema_: Literal["shearling.load_curve/1"] = pydantic.Field("shearling.load_curve/1", alias="schema")
    created: str
    deployment: Deployment
    options: RunOptions
    environment: Environment
    facts: RuntimeFacts
    prompt_tokens: int
    new_tokens: int
    levels: tuple[Level, ...]


def measure_load(target: Target, work: LoadWork, *, options: RunOptions) -> LoadCurve:
    """Measure every level, the smallest first.

    Args:
        target: an OpenVINO export.
        work: the same for every level but for the requests in flight.
        options: device, precision, threads.

    Raises:
        UsageError: numbers out of range, or work that exceeds the context.
        ArtefactError: the directory cannot be used.
        DeviceUnavailable: before anything is loaded.
    """
    if not work.concurrency or min(work.concurrency) < 1 or work.requests < 1:
        raise UsageError(
            "a level needs at least one request in flight", remedy="Give --concurrency 1,2,4,8, for example"
        )
    workload = make_workload(work.prompt_tokens, work.new_tokens, seed=work.seed)
    deployment = find_deployment(target.only("openvino"), device=options.device)
    prompts = Prompts([deployment], workload)
    check_device(deployment.format, options.device)
    environment = describe_environment()
    pipeline, facts = _load(deployment, options)
    counts = {level: max(work.requests, 2 * level) for level in sorted(set(work.concurrency))}
    with progress("requests", total=sum(counts.values()) + max(counts)) as advance:
        _run_level(pipeline, prompts, max(counts), max(counts), work.new_tokens, advance)  # warm-up
        levels = tuple(
            _run_level(pipeline, prompts, level, count, work.new_tokens, advance) for level, count in counts.items()
        )
    return LoadCurve(
        created=utc_now(),
        deployment=deployment,
        options=options,
        environment=environment,
        facts=facts,
        prompt_tokens=work.prompt_tokens,
        new_tokens=work.new_tokens,
        levels=levels,
    )


def write_load_curve(path: Path, curve: LoadCurve, *, force: bool = False) -> None:
    """Write it as a `benchmark` artefact.

    Raises:
        OutputExists: `path` is taken and `force` is false.
    """
    with write_artefact(path, kind="benchmark", force=force) as draft:
        write_document(draft.directory / FILE, curve)
        draft.details["measured"] = {curve.deployment.label: curve.deployment.weights_sha256}


def _load(deployment: Deployment, options: RunOptions) -> tuple[ContinuousBatchingPipeline, RuntimeFacts]:
    from serve.runtimes.openvino import load_batching_pipeline

    return load_batching_pipeline(deployment, options)


def _run_level(
    pipeline: ContinuousBatchingPipeline,
    prompts: Prompts,
    concurrency: int,
    requests: int,
    new_tokens: int,
    advance: Advance,
) -> Level:
    numbers = itertools.count()
    rising = [
        _add(pipeline, prompts, next(numbers), -(-new_tokens * share // concurrency))
        for share in range(1, concurrency + 1)
    ]
    flying: list[GenerationHandle] = []
    metrics: list[Any] = []
    started_s = time.perf_counter()
    while len(metrics) < requests:
        while len(rising) + len(flying) < concurrency:
            flying.append(_add(pipeline, prompts, next(numbers), new_tokens))
        with refusals():
            pipeline.step()
        landed = [handle for handle in flying if _finished(handle)]
        flying = [handle for handle in flying if handle not in landed]
        if rising:
            rising = [handle for handle in rising if not _finished(handle)]
            started_s = time.perf_counter()
            continue
        for handle in landed:
            metrics.append(handle.get_perf_metrics())
            advance(note=f"{concurrency} in flight")
    wall_s = time.perf_counter() - started_s
    for handle in flying:
        handle.cancel()
    if flying:
        # It is the next step that frees what they hold.
        with refusals():
            pipeline.step()
    return Level(
        concurrency=concurrency,
        requests=len(metrics),
        wall_s=wall_s,
        tokens_per_s=sum(item.get_num_generated_tokens() for item in metrics) / wall_s,
        ttft_s=_spread([item.get_ttft().mean / 1e3 for item in metrics]),
        tpot_s=_spread([item.get_tpot().mean / 1e3 for item in metrics]),
    )


def _add(pipeline: ContinuousBatchingPipeline, prompts: Prompts, number: int, new_tokens: int) -> GenerationHandle:
    import openvino

    from serve.runtimes.openvino_decoding import greedy

    (rows,), _ = prompts.draw()
    return pipeline.add_request(
        number, openvino.Tensor(np.asarray(rows, dtype=np.int64)), greedy(new_tokens, frozenset())
    )


def _finished(handle: GenerationHandle) -> bool:
    from openvino_genai import GenerationStatus

    return bool(handle.get_status() != GenerationStatus.RUNNING)


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {f"p{share}": percentile(values, share / 100) for share in SHARES}
