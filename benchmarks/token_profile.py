"""Where the time of a token goes: nodes of a compiled decoder, microseconds of each kind, and the share that reading
its bytes would take alone.

    python -m benchmarks.token_profile stock-int8 sparse-int8@ATTENTION_BACKEND=SDPA sparse-int8 --threads 2

Every target is an OpenVINO decoder, loaded as `serve generate` loads it (`@ATTENTION_BACKEND=SDPA` keeps the attention
of the file). After a prompt one token follows another, all memory in huge pages as in `serve bench`; times are medians
over them. Nodes are timed in a second compilation that counts, so that counting does not slow the first. Bytes are
those of the weights that a token reads and of the cache at the last token; the bandwidth is that of reading memory
behind the tokens, on all threads. The tables go to stdout as Markdown.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command import command
from serve.runtimes.deployment import find_deployment
from serve.runtimes.openvino_loading import StockIr, prepare
from serve.runtimes.runtime import RunOptions
from serve.visitor.huge_pages import collapse_memory
from serve.visitor.ir_settings import OF_GENAI
from shearling.kernel.library import read_memory
from shearling.kernel.openvino_extension import core_for
from shearling.target import parse_target

READ_BYTES = 1 << 30
NO_WORK = {"Input", "Const", "Output"}
LOOKUPS = {"Gather", "SparseEmbedding"}
MOST_KINDS = 6


@dataclass(frozen=True)
class Profile:
    """One decoder.

    Attributes:
        nodes: that run for a token.
        token_s: of a token, all included.
        kinds: kind of a node -> how many, and seconds of a token; the longest first.
        weight_bytes: that products of a token read.
        cache_bytes: of keys and values.
        reading_s: what reading as many bytes takes.
    """

    label: str
    nodes: int
    token_s: float
    kinds: dict[str, tuple[int, float]]
    weight_bytes: int
    cache_bytes: int
    reading_s: float


def profile(label: str, options: RunOptions, *, prompt_tokens: int, tokens: int) -> Profile:
    """Decode, and count.

    Args:
        label: of the target, as the command line has it.
        options: threads above all.
        prompt_tokens: that the cache holds before the first token.
        tokens: one after another.

    Raises:
        ShearlingError: it cannot be loaded.
    """
    deployment = find_deployment(parse_target(label))
    _, loaded = prepare(deployment, options)
    core, xml = core_for(deployment.model_file), deployment.model_file
    model = core.read_model(xml) if isinstance(loaded, StockIr) else loaded.read()
    properties = {name: value for name, value in loaded.properties.items() if name not in {*OF_GENAI, "extensions"}}
    weight_bytes = _weight_bytes(model)
    request = core.compile_model(model, "CPU", properties).create_infer_request()
    _decode(request, prompt_tokens, tokens)
    block = np.ones(READ_BYTES, np.uint8)
    collapse_memory()
    request.reset_state()
    seconds, reading = _decode(request, prompt_tokens, tokens), []
    cache_bytes = sum(_bytes_in_use(state.state, prompt_tokens + tokens) for state in request.query_state())
    for _ in range(5):
        started_s = time.perf_counter()
        read_memory(block, piece_bytes=READ_BYTES)
        reading.append(time.perf_counter() - started_s)
    del request
    kinds = _time_nodes(core, model, properties, prompt_tokens, tokens)
    return Profile(
        label=label,
        nodes=sum(count for count, _ in kinds.values()),
        token_s=float(np.median(seconds)),
        kinds=dict(sorted(kinds.items(), key=lambda item: -item[1][1])),
        weight_bytes=weight_bytes,
        cache_bytes=cache_bytes,
        reading_s=float(np.median(reading)) * (weight_bytes + cache_bytes) / READ_BYTES,
    )


def _time_nodes(
    core: Any, model: Any, properties: Any, prompt_tokens: int, tokens: int
) -> dict[str, tuple[int, float]]:
    """Kind -> how many nodes, and seconds of a token without what a prompt takes.

    OpenVINO cuts the time of a node to whole microseconds twice, in every run and in their mean, so that up to 1 us of
    each is missing, and of faster ones all.
    """
    types = {node.get_friendly_name(): node.get_type_name() for node in model.get_ops()}
    compiled = core.compile_model(model, "CPU", {**properties, "PERF_COUNT": "YES"})
    kinds: dict[str, str] = {}
    for node in compiled.get_runtime_model().get_ops():
        name, kind = node.get_friendly_name(), node.get_rt_info()["layerType"].astype(str)
        if kind not in NO_WORK:
            # What OpenVINO has no kernel of its own for is called by one name.
            kinds[name] = types.get(name, kind) if kind == "Reference" else kind
    request = compiled.create_infer_request()
    _decode(request, prompt_tokens, tokens)
    collapse_memory()
    # What OpenVINO tells are means over all inferences: totals after each of three more runs.
    totals, inferences = [], 1 + tokens
    for count in (0, tokens, 0):
        request.reset_state()
        _decode(request, prompt_tokens, count)
        inferences += 1 + count
        totals.append({node.node_name: inferences * node.real_time.total_seconds() for node in request.profiling_info})
    found: dict[str, tuple[int, float]] = {}
    for name, kind in kinds.items():
        before, between, after = (total.get(name, 0.0) for total in totals)
        number, seconds = found.get(kind, (0, 0.0))
        found[kind] = (number + 1, seconds + ((between - before) - (after - between)) / tokens)
    return found


def _decode(request: Any, prompt_tokens: int, tokens: int) -> list[float]:
    """Seconds of every token."""
    vocabulary = request.model_outputs[0].get_partial_shape()[2].get_length()
    ids = np.random.default_rng(0).integers(0, vocabulary, (1, prompt_tokens + tokens))
    names = {name for port in request.model_inputs for name in port.get_names()}
    seconds, past = [], 0
    for rows in (prompt_tokens, *[1] * tokens):
        feed = {
            "input_ids": ids[:, past : past + rows],
            "attention_mask": np.ones((1, past + rows), np.int64),
            "position_ids": np.arange(past, past + rows)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        given = {name: value for name, value in feed.items() if name in names}
        started_s = time.perf_counter()
        request.start_async(given, share_inputs=True)  # no copies, of inputs or outputs
        request.wait()
        if past:
            seconds.append(time.perf_counter() - started_s)
        past += rows
    return seconds


def _bytes_in_use(state: Any, positions: int) -> int:
    """Of keys or values [batch, heads, positions, ...], of which there may be more than are in use."""
    return int(state.byte_size) * min(positions, state.shape[2]) // state.shape[2]


def _weight_bytes(model: Any) -> int:
    """Of all constants but those that nothing but a lookup of a few rows reads."""
    total = 0
    for node in model.get_ops():
        if node.get_type_name() == "Constant" and not _is_table(node):
            total += int(node.get_byte_size())
    return total


def _is_table(node: Any) -> bool:
    readers = [reader.get_node() for output in node.outputs() for reader in output.get_target_inputs()]
    kinds = {reader.get_type_name() for reader in readers}
    if kinds & {"Convert", "Multiply", "Subtract", "Reshape"}:  # decompression
        return all(_is_table(reader) or reader.get_type_name() in LOOKUPS for reader in readers)
    return bool(kinds) and kinds <= LOOKUPS


def render(profiles: Sequence[Profile]) -> str:
    """Two Markdown tables."""
    lines = [
        "| model | nodes | ms a token | in nodes | MiB, weights and cache | reading them, ms | share |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for item in profiles:
        inside = sum(seconds for _, seconds in item.kinds.values())
        size = (item.weight_bytes + item.cache_bytes) / 2**20
        lines.append(
            f"| {Path(item.label).name} | {item.nodes} | {1e3 * item.token_s:.2f} | {1e3 * inside:.2f} "
            f"| {size:.0f} | {1e3 * item.reading_s:.2f} | {item.reading_s / item.token_s:.0%} |"
        )
    lines += ["", "| model | node | how many | us a token |", "| --- | --- | ---: | ---: |"]
    for item in profiles:
        for kind, (count, seconds) in list(item.kinds.items())[:MOST_KINDS]:
            lines.append(f"| {Path(item.label).name} | {kind} | {count} | {1e6 * seconds:.0f} |")
    missing = ", ".join(f"{1e-3 * item.nodes:.2f} ms of {Path(item.label).name}" for item in profiles)
    lines += ["", f"OpenVINO counts whole microseconds, so that up to 1 us of every node is missing: {missing}."]
    return "\n".join(lines)


@command
def main(argv: list[str] | None = None) -> int:
    """Profile, and print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.token_profile", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("targets", nargs="+", metavar="TARGET", help="an OpenVINO decoder, with @NAME=VALUE")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args(argv)
    if options.tokens < 1 or options.prompt_tokens < 1:
        parser.error("--tokens and --prompt-tokens are at least 1")
    run = RunOptions(threads=options.threads)
    found = [
        profile(target, run, prompt_tokens=options.prompt_tokens, tokens=options.tokens) for target in options.targets
    ]
    sys.stdout.write(render(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
