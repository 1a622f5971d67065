"""The time of one forward of exported classifiers, side by side.

All models are loaded first and take turns, forwards and backwards in alternation (A B B A), so that what slows the
machine for a while slows them all; ratios are of neighbours in a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from serve.bench.statistics import bootstrap_median, paired_ratio
from serve.bench.workload import MINIMUM_VOCABULARY
from serve.runtimes.deployment import Deployment, find_deployment
from shearling.errors import ModelUnsupported, UsageError
from shearling.kernel.runtime_refusal import refusals
from shearling.strict_json import Document
from shearling.target import Target

if TYPE_CHECKING:
    import openvino

WARM_UP = 10
RUNS_OF_A_BLOCK = 5


class ForwardTime(Document):
    """One model.

    Attributes:
        ms: of one forward, median over blocks.
        speedup: time of the first model divided by this one's, in pairs.
        bytes: of the weights.
    """

    directory: str
    ms: float
    speedup: float
    low: float
    high: float
    bytes: int


def measure_forwards(targets: Sequence[Target], *, tokens: int, blocks: int, threads: int | None) -> list[ForwardTime]:
    """Time models in turn.

    Args:
        targets: exports with OpenVINO. Packed ones begin with `PREFERRED_PROPERTIES`, which a target may override.
        tokens: length of the sequence.
        blocks: rounds.
        threads: of the runtime; None leaves it to it.

    Raises:
        ArtefactError: a directory holds no OpenVINO model, or one with a cache.
        ModelUnsupported: OpenVINO cannot compile one.
        UsageError: another format is named behind a directory, a model knows fewer positions, or OpenVINO refuses a
            property.
    """
    deployments = [find_deployment(target.only("openvino"), classifies=True) for target in targets]
    for deployment in deployments:
        _require_positions(deployment, tokens)
    models = [_load(target, deployment, threads) for target, deployment in zip(targets, deployments, strict=True)]
    vocabulary = min(deployment.vocabulary or MINIMUM_VOCABULARY for deployment in deployments)
    feeds = [_feed(model, tokens, vocabulary=vocabulary) for model in models]
    samples: list[list[float]] = [[] for _ in models]
    for block in range(blocks + 1):
        order = range(len(models)) if block % 2 == 0 else reversed(range(len(models)))
        for place in order:
            with refusals(targets[place].path):
                mean_ms = _mean_ms(models[place], feeds[place], warm_up=WARM_UP if block == 0 else 1)
            if block:
                samples[place].append(mean_ms)
    results = []
    for target, deployment, values in zip(targets, deployments, samples, strict=True):
        ratio = paired_ratio(samples[0], values)
        results.append(
            ForwardTime(
                directory=target.label,
                ms=bootstrap_median(values).median,
                speedup=ratio.median,
                low=ratio.low,
                high=ratio.high,
                bytes=deployment.weights_bytes,
            )
        )
    return results


def _mean_ms(request: openvino.InferRequest, feed: dict[str, Any], *, warm_up: int) -> float:
    for _ in range(warm_up):
        request.infer(feed)
    latencies = []
    for _ in range(RUNS_OF_A_BLOCK):
        request.infer(feed)
        # OpenVINO's own clock, as benchmark_app reads it: without the Python call around it.
        latencies.append(request.latency)
    return sum(latencies) / RUNS_OF_A_BLOCK


def _require_positions(deployment: Deployment, tokens: int) -> None:
    context = deployment.context_tokens
    if context is not None and tokens > context:
        raise UsageError(
            f"{tokens} tokens exceed the context of {context}",
            where=deployment.label,
            remedy=f"Give --tokens {context} or fewer",
        )


def _load(target: Target, deployment: Deployment, threads: int | None) -> openvino.InferRequest:
    from serve.runtimes.openvino_loading import probe_device
    from serve.visitor.ir_settings import OF_GENAI
    from shearling.kernel.openvino_extension import PREFERRED_PROPERTIES, compile_ir, needs_extension

    xml = deployment.model_file
    properties = {"PERFORMANCE_HINT": "LATENCY"} | ({} if threads is None else {"INFERENCE_NUM_THREADS": str(threads)})
    properties |= deployment.properties
    preferred = PREFERRED_PROPERTIES if needs_extension(xml) else {}
    of_device = {name: value for name, value in ({**preferred, **properties}).items() if name not in OF_GENAI}
    probe_device("CPU", of_device, xml, label=target.label)
    compiled = compile_ir(xml, properties=properties, preferred=preferred, packed=None)
    if "beam_idx" in {name for port in compiled.inputs for name in port.names}:
        raise ModelUnsupported("a language model", where=target.label, remedy="Measure it with: python -m serve bench")
    return compiled.create_infer_request()


def _feed(request: Any, tokens: int, *, vocabulary: int) -> dict[str, Any]:
    import numpy as np

    # Special tokens come first in most vocabularies.
    ids = (np.arange(tokens, dtype=np.int64)[None] % 1000 + 1000) % vocabulary
    values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    inputs = {name for port in request.model_inputs for name in port.names}
    return {name: value for name, value in values.items() if name in inputs}
