"""`python -m serve.bench.forward`: the time of one forward of exported classifiers, side by side.

All models are loaded first and take turns, forwards and backwards in alternation (A B B A), so that what slows the
machine for a while slows them all; ratios are of neighbours in a block.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shearling.command_line import DebugFlag, JsonFlag, Result, make_app, run_command
from shearling.strict_json import Document

if TYPE_CHECKING:
    from serve.bench.statistics import Estimate

app = make_app(
    "Time one forward of exported classifiers on OpenVINO's CPU device, side by side; ratios are to the first."
)

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


@app.command()
def forward(
    directories: Annotated[
        list[Path],
        typer.Argument(
            help="Exports with an openvino/ part, the reference first; DIR@NAME=VALUE sets a property of OpenVINO.",
            show_default=False,
        ),
    ],
    tokens: Annotated[int, typer.Option(min=1, help="Length of the sequence; batch 1.")] = 64,
    blocks: Annotated[int, typer.Option(min=2, help="Rounds in which every model has its turn.")] = 40,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: the runtime's own choice.")] = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Measure exported classifiers against the first of them."""
    from rich.table import Table

    times = measure_forwards(directories, tokens=tokens, blocks=blocks, threads=threads)
    table = Table(title=f"one forward, batch 1, {tokens} tokens, OpenVINO CPU", title_justify="left")
    table.add_column("export", overflow="fold")
    for heading in ("ms", "speed-up", "95 % interval", "MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for item in times:
        table.add_row(
            item.directory,
            f"{item.ms:.2f}",
            f"{item.speedup:.2f}x",
            f"{item.low:.2f} to {item.high:.2f}",
            f"{item.bytes / 1e6:.1f}",
        )
    return Result({"tokens": tokens, "times": [item.model_dump(mode="json") for item in times]}, table)


def measure_forwards(directories: list[Path], *, tokens: int, blocks: int, threads: int | None) -> list[ForwardTime]:
    """Time models in turn.

    Args:
        directories: `export` artefacts, each with the properties of OpenVINO that hold for it alone; see
            `serve.runtimes.deployment.find_configured`. Packed ones begin with `PREFERRED_PROPERTIES`.
        tokens: length of the sequence.
        blocks: rounds.
        threads: of the runtime; None leaves it to it.

    Raises:
        ArtefactError: a directory holds no OpenVINO model, or one with a cache.
        ModelUnsupported: OpenVINO cannot compile one.
        UsageError: another format is named behind a directory, or OpenVINO refuses a property.
    """
    from serve.bench.statistics import bootstrap_median, paired_ratio

    models = [_load(directory, threads) for directory in directories]
    feeds = [_feed(model, tokens) for model, _ in models]
    samples: list[list[float]] = [[] for _ in models]
    for block in range(blocks + 1):
        order = range(len(models)) if block % 2 == 0 else reversed(range(len(models)))
        for place in order:
            request, feed = models[place][0], feeds[place]
            for _ in range(WARM_UP if block == 0 else 1):
                request.infer(feed)
            latencies = []
            for _ in range(RUNS_OF_A_BLOCK):
                request.infer(feed)
                # OpenVINO's own clock, as benchmark_app reads it: without the Python call around it.
                latencies.append(request.latency)
            if block:
                samples[place].append(sum(latencies) / RUNS_OF_A_BLOCK)
    results = []
    for directory, (_, size_bytes), values in zip(directories, models, samples, strict=True):
        ratio: Estimate = paired_ratio(samples[0], values)
        results.append(
            ForwardTime(
                directory=str(directory),
                ms=bootstrap_median(values).median,
                speedup=ratio.median,
                low=ratio.low,
                high=ratio.high,
                bytes=size_bytes,
            )
        )
    return results


def _load(directory: Path, threads: int | None) -> tuple[Any, int]:
    from serve.runtimes.deployment import find_configured
    from serve.runtimes.openvino import probe_device
    from shearling.errors import ModelUnsupported, UsageError
    from shearling.kernel.openvino_extension import PREFERRED_PROPERTIES, compile_ir, needs_extension

    deployment = find_configured(directory, choice="openvino")
    if deployment.format != "openvino":
        raise UsageError(
            f"only OpenVINO is timed here, not {deployment.format}",
            where=directory,
            remedy="Give an export with an openvino/ part",
        )
    xml = deployment.directory / "openvino_model.xml"
    properties = {"PERFORMANCE_HINT": "LATENCY"} | ({} if threads is None else {"INFERENCE_NUM_THREADS": str(threads)})
    properties |= (PREFERRED_PROPERTIES if needs_extension(xml) else {}) | deployment.properties
    probe_device("CPU", properties, label=str(directory))
    compiled = compile_ir(xml, properties=properties)
    if "beam_idx" in {name for port in compiled.inputs for name in port.names}:
        raise ModelUnsupported("a language model", where=directory, remedy="Measure it with: python -m serve bench")
    return compiled.create_infer_request(), deployment.weights_bytes


def _feed(request: Any, tokens: int) -> dict[str, Any]:
    import numpy as np

    ids = np.arange(tokens, dtype=np.int64)[None] % 1000 + 1000
    values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    inputs = {name for port in request.model_inputs for name in port.names}
    return {name: value for name, value in values.items() if name in inputs}


if __name__ == "__main__":
    run_command(app, program="python -m serve.bench.forward")
