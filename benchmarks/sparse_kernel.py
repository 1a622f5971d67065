"""Packed matrices beside OpenVINO's own, in OpenVINO: one layer after the other, more of them than the last cache
holds.

    python -m benchmarks.sparse_kernel [--size 4096] [--rows 1,4,16,512] [--sparsities 0.5,0.7,2:4]
        [--layers 8] [--repeats 7] [--no-huge-pages]

Every contestant is a chain of products of random matrices, compiled with the threads that the process may use. A round
runs all of them, every second round in the opposite order; reported are medians in ms for a product, and the median
over rounds of the ratio of the best stock int8 to each. So are two shares of the bandwidth: every round also reads
memory that no cache holds with the same threads, once as a whole, and in pieces of the size of each contestant's
weights, one after the other as its products are: starting a loop and filling the pipeline to memory costs the more, the
smaller the pieces are.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from benchmarks.command import command
from serve.bench.environment import describe_environment
from serve.bench.statistics import bootstrap_median
from serve.visitor.huge_pages import collapse_memory
from shearling.kernel.build import build_library
from shearling.kernel.library import held_bytes, kernels_in_use, pack_matrix, read_memory
from shearling.kernel.openvino_extension import node_factory
from shearling.kernel.packed_format import Bytes, Matrix, ValueType, read_header

INT4_GROUP = 128
TWO_OF_FOUR = "2:4"
READ_BYTES = 1 << 30
Output = Any
Node = Callable[[Output], Output]


@dataclass(frozen=True)
class Contestant:
    """One way to hold and multiply the matrices.

    Attributes:
        weight_bytes: of one matrix, as it is held in memory.
        layers: products of a run.
        run: all products once.
    """

    name: str
    weight_bytes: int
    layers: int
    run: Callable[[], object]


@functools.cache
def random_matrix(size: int, value_type: ValueType, sparsity: str) -> Matrix:
    """A square matrix that keeps the magnitude of what it multiplies; `sparsity` as on the command line."""
    generator = np.random.default_rng(0)
    numbers = generator.random((size, size), np.float32)
    share = 0.5 if sparsity == TWO_OF_FOUR else float(sparsity)
    kept = numbers >= share
    if sparsity == TWO_OF_FOUR:
        kept = (np.argsort(numbers.reshape(size, -1, 4), axis=2) < 2).reshape(size, size)
    # A product with the mask would leave negative zeros, which are stored.
    weights = np.where(
        kept,
        generator.standard_normal((size, size), np.float32) * np.float32(1 / np.sqrt(size * (1 - share))),
        np.float32(0),
    )
    if value_type is ValueType.BF16:
        return Matrix((weights.view(np.uint32) >> 16).astype(np.uint16), value_type)
    group, limit = (size, 127) if value_type is ValueType.INT8 else (INT4_GROUP, 7)
    grouped = weights.reshape(size, -1, group)
    scales = np.abs(grouped).max(axis=2, keepdims=True) / limit
    values = np.rint(grouped / scales).astype(np.int8)
    return Matrix(values.reshape(size, size), value_type, scales[:, :, 0].astype(np.float16), group)


@functools.cache
def packed_matrix(size: int, value_type: ValueType, sparsity: str) -> Bytes:
    """The same, packed."""
    return pack_matrix(random_matrix(size, value_type, sparsity))


def stock_product(matrix: Matrix, layer: int) -> tuple[Node, int]:
    """A product as NNCF leaves it in an IR: compressed constant, converted and scaled in the graph.

    Args:
        matrix: of which one weight is changed, so that no two layers can share a constant.
        layer: decides it.
    """
    rows, columns = matrix.values.shape
    matrix = replace(matrix, values=matrix.values.copy())
    matrix.values[0, 0] = layer % 7
    matrix.values[0, 1] = layer // 7
    if matrix.value_type is ValueType.BF16:
        tensor = ov.Tensor(ov.Type.bf16, ov.Shape([rows, columns]))
        tensor.data.view(np.uint16)[:] = matrix.values
        constant = ov.op.Constant(tensor, shared_memory=False)
        return lambda x: op.matmul(x, op.convert(constant, "f32"), False, True).output(0), matrix.values.nbytes
    assert matrix.scales is not None
    stored, shape = matrix.values, [rows, columns]
    if matrix.value_type is ValueType.INT4:
        shape = [rows, columns // matrix.group_size, matrix.group_size]
        nibbles = matrix.values.view(np.uint8).reshape(-1, 2) & 15
        tensor = ov.Tensor((nibbles[:, 0] | nibbles[:, 1] << 4).astype(np.uint8), shape, ov.Type.i4)
        constant = ov.op.Constant(tensor, shared_memory=False)
        scales = matrix.scales[:, :, None]
    else:
        constant, scales = op.constant(stored), matrix.scales
    scaled = op.multiply(op.convert(constant, "f16"), op.constant(scales))
    weight = op.convert(op.reshape(scaled, op.constant([rows, columns]), False), "f32")
    return lambda x: op.matmul(x, weight, False, True).output(0), constant.get_byte_size() + matrix.scales.nbytes


def packed_product(packed: Bytes, size: int, layer: int) -> Node:
    """The same as one `SparseLinear`; its first bytes are changed, too."""
    packed = packed.copy()
    packed[read_header(packed).sections[-1]] = 1 + layer % 7 | 1 + layer // 7 % 7 << 4  # no nibble is zero
    attributes = {
        "rows": [size],
        "columns": size,
        "norm_epsilon": 0.0,
        "bias": False,
        "residual": False,
        "precision": "auto",
        "format_version": 1,
    }
    constant = op.constant(packed)
    return lambda x: node_factory().create("SparseLinear", [x, constant.output(0)], attributes).output(0)


def readings(sizes: set[int]) -> Iterator[Contestant]:
    """Memory read on the kernels' threads in the place of products: as a whole, and in pieces of every size."""
    block = np.ones(READ_BYTES, np.uint8)
    for size in {READ_BYTES, *sizes}:
        yield Contestant(
            reading(size), size, READ_BYTES // size, functools.partial(read_memory, block, piece_bytes=size)
        )


def reading(size: int) -> str:
    """Name of the contestant that reads pieces of this size."""
    return f"reading {size} bytes at a time"


def contestants(size: int, rows: int, sparsities: list[str], layers: int) -> Iterator[Contestant]:
    """Stock bf16, int8 (both settings of dynamic quantisation) and int4; packed bf16, int8 and int4 at each
    sparsity.
    """
    for value_type in ValueType:
        matrix = random_matrix(size, value_type, sparsities[0])
        products = [stock_product(matrix, layer) for layer in range(layers)]
        nodes, weight_bytes = [node for node, _ in products], products[0][1]
        name = f"stock {value_type.name.lower()}"
        yield Contestant(name, weight_bytes, layers, _compile(nodes, size, rows, {}))
        if value_type is ValueType.INT8:
            yield Contestant(
                f"{name}, no dynamic quantisation",
                weight_bytes,
                layers,
                _compile(nodes, size, rows, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}),
            )
        for sparsity in sparsities:
            packed = packed_matrix(size, value_type, sparsity)
            run = _compile([packed_product(packed, size, layer) for layer in range(layers)], size, rows, {})
            title = sparsity if sparsity == TWO_OF_FOUR else f"{float(sparsity):.0%}"
            held = held_bytes(packed)
            yield Contestant(f"sparse {value_type.name.lower()} at {title}", held, layers, run)


def _compile(nodes: list[Node], size: int, rows: int, settings: dict[str, Any]) -> Callable[[], object]:
    parameter = op.parameter([rows, size], np.float32)
    end = parameter.output(0)
    for node in nodes:
        end = node(end)
    core = ov.Core()
    core.add_extension(str(build_library()))
    threads = len(os.sched_getaffinity(0))
    properties = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", **settings}
    request = core.compile_model(ov.Model([op.result(end)], [parameter]), "CPU", properties).create_infer_request()
    request.set_input_tensor(ov.Tensor(np.random.default_rng(9).standard_normal((rows, size), np.float32)))
    return request.infer


def measure(entries: list[Contestant], *, repeats: int, inferences: int, huge_pages: bool) -> dict[str, list[float]]:
    """Seconds for one product, per contestant and round."""
    for entry in entries:
        for _ in range(2):
            entry.run()
    if huge_pages:
        collapse_memory()
    seconds: dict[str, list[float]] = {entry.name: [] for entry in entries}
    for repeat in range(repeats):
        for entry in entries if repeat % 2 == 0 else entries[::-1]:
            entry.run()
            started_s = time.perf_counter()
            for _ in range(inferences):
                entry.run()
            seconds[entry.name].append((time.perf_counter() - started_s) / inferences / entry.layers)
    return seconds


def summarise(entries: list[Contestant], seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """One row per contestant; the reference is the better of the two stock int8, the bandwidth that of reading memory
    in the same round.
    """
    stock = [name for name in seconds if name.startswith("stock int8")]
    best = [min(values) for values in zip(*(seconds[name] for name in stock), strict=True)]
    rows = []
    for entry in entries:
        own = seconds[entry.name]
        speedup = bootstrap_median([reference / value for reference, value in zip(best, own, strict=True)])
        whole = [entry.weight_bytes / READ_BYTES * seconds_ for seconds_ in seconds[reading(READ_BYTES)]]
        row = {
            "name": entry.name,
            "ms": round(1e3 * float(np.median(own)), 4),
            "best_ms": round(1e3 * min(own), 4),
            "mib": entry.weight_bytes / 2**20,
            "gb_s": round(entry.weight_bytes / float(np.median(own)) / 1e9, 1),
            "speedup_over_best_int8": speedup.model_dump(),
            "share_of_bandwidth": _share(whole, own),
            "share_of_bandwidth_in_pieces": _share(seconds[reading(entry.weight_bytes)], own),
        }
        rows.append(row)
    return rows


def _share(reading_s: list[float], own_s: list[float]) -> dict[str, float]:
    return bootstrap_median([limit / own for limit, own in zip(reading_s, own_s, strict=True)]).model_dump()


@command
def main(argv: list[str] | None = None) -> int:
    """Measure, and print one JSON object for each number of rows."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sparse_kernel", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rows", default="1,4,16,512", help="of activations, separated by commas")
    parser.add_argument(
        "--sparsities", default="0.5,0.7", help=f"shares of zeros or {TWO_OF_FOUR}, separated by commas"
    )
    parser.add_argument(
        "--layers", type=int, default=8, help="products of a chain: together they should be beyond the last cache"
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--huge-pages",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="for stock weights too; packed ones take them anyway",
    )
    options = parser.parse_args(argv)
    environment = describe_environment()
    facts = {
        "cpu": environment.cpu,
        "cpus": environment.usable_cpus,
        "kernels": kernels_in_use(),
        "size": options.size,
        "layers": options.layers,
    }
    for rows in (int(text) for text in options.rows.split(",")):
        entries = [*contestants(options.size, rows, options.sparsities.split(","), options.layers)]
        entries += readings({entry.weight_bytes for entry in entries})
        seconds = measure(
            entries, repeats=options.repeats, inferences=max(1, 10 // -(-rows // 8)), huge_pages=options.huge_pages
        )
        sys.stdout.write(json.dumps({**facts, "rows": rows, "contestants": summarise(entries, seconds)}) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
