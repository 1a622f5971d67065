"""llama.cpp and DeepSparse, built into environments of their own to be measured beside our exports.

    python -m benchmarks.peers build llama.cpp peers/llama          # compiles; minutes; needs a C++ compiler
    python -m benchmarks.peers build deepsparse peers/deepsparse    # needs Python 3.11
    python -m benchmarks.peers gguf RUN/adapted peers/llama         # Q8_0, Q4_0, Q4_0-pure, Q4_K_M
        [--dataset task,general.jsonl --task RUN/task]              # also Q4_0-imatrix and so on
    python -m benchmarks.peers decoder RUN/export/model peers/sparse-decoder
    python -m serve bench EXPORT ... peers/llama/Q8_0.gguf@environment=peers/llama
        peers/sparse-decoder@environment=peers/deepsparse
    shearling evaluate EXPORT ... peers/llama/Q8_0.gguf@environment=peers/llama --tasks RUN/task
    python -m benchmarks.peers layer peers/deepsparse

`gguf` writes a model for llama.cpp, with --dataset also calibrated on the windows of text that the same option of
`python -m export` takes; `decoder` a pruned model for DeepSparse (`benchmarks.static_decoder`); `serve bench`
decodes the same random prompts in them and in every export, and `shearling evaluate` asks GGUF files the questions of a
task. `layer` runs layers of 4096 x 4096 with half of their weights zero, one after the other: DeepSparse in float32,
OpenVINO and our operators in bf16 and int8. Of 32, ours in int8 are the smallest, 335 MB together; where the processor
has a larger cache, `--layers` more, or those that fit it are compared with those that do not. Ours ask for huge pages.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from benchmarks.command import command
from benchmarks.static_decoder import write_static_decoder
from export.quantization.text import CalibrationText, find_text, windows_of
from serve.bench.statistics import bootstrap_median, paired_ratio
from shearling.errors import EnvironmentFault
from shearling.registry.runtimes import RUNTIMES
from shearling.virtual_environment import interpreter_of, make_environment, require_packages

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "llama.cpp": ("llama-cpp-python==0.3.36",),
    "deepsparse": ("deepsparse==1.8.0", "numpy==1.26.4", "onnx==1.14.1", "setuptools<81"),
}
QUANTIZATIONS = ("Q8_0", "Q4_0", "Q4_0-pure", "Q4_K_M")
CALIBRATED = ("Q4_0", "Q4_0-pure", "Q4_K_M")
"""Those that an importance matrix changes."""
CALIBRATION_WINDOWS = 256
WIDTH = 4096


@command
def main(arguments: list[str]) -> int:
    """Build an environment, or measure with one."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build")
    build.add_argument("peer", choices=sorted(PACKAGES))
    build.add_argument("environment", type=Path)
    gguf = commands.add_parser("gguf")
    gguf.add_argument("base", type=Path, help="a Llama checkpoint")
    gguf.add_argument("environment", type=Path, help="with llama.cpp")
    gguf.add_argument("--output", type=Path, help="directory to write to; by default that of the environment")
    gguf.add_argument("--dataset", help="texts of an importance matrix: task, or files, separated by commas")
    gguf.add_argument("--task", type=Path, help="RUN/task, where the dataset has it")
    decoder = commands.add_parser("decoder")
    decoder.add_argument("model", type=Path, help="a Llama checkpoint, such as the model of an export")
    decoder.add_argument("directory", type=Path, help="where to write")
    layer = commands.add_parser("layer")
    layer.add_argument("environment", type=Path)
    layer.add_argument("--layers", type=int, default=32, help="together larger than the caches, in int8 as well")
    layer.add_argument("--threads", type=int, default=2)
    layer.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    if options.command == "build":
        build_environment(options.peer, options.environment)
    elif options.command == "gguf":
        text = find_text(options.dataset.split(","), options.task or Path()) if options.dataset else None
        write_quantized(options.base, options.environment, options.output or options.environment, text)
    elif options.command == "decoder":
        write_static_decoder(options.model, options.directory)
    else:
        sys.stdout.write(json.dumps(measure_layer(options), indent=1) + "\n")
    return 0


def build_environment(peer: str, directory: Path) -> None:
    """A virtual environment with one peer in it; a source distribution is compiled for this processor.

    Raises:
        PackageMissing: pip cannot install it; nothing is left of the environment then.
    """
    make_environment(directory, PACKAGES[peer])


class Peer:
    """`benchmarks.peer_worker` in its environment; use as a context manager."""

    def __init__(self, environment: Path, path: Path, *, threads: int) -> None:
        script, self._environment = Path(__file__).with_name("peer_worker.py"), environment
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        command = [str(interpreter_of(environment)), str(script)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self.name = str(self.ask({"do": "load", "path": str(path), "threads": threads})["runtime"])

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request, one reply.

        Raises:
            EnvironmentFault: its process ended.
        """
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the peer has no pipes")
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            said = self._log.read().decode(errors="replace")
            raise EnvironmentFault(f"the peer ended: {said[-2000:].strip()}", where=self._environment)
        reply: dict[str, Any] = json.loads(line)
        return reply


def write_quantized(base: Path, environment: Path, output: Path, text: CalibrationText | None = None) -> None:
    """A Llama checkpoint with its tokenizer as GGUF files, quantized by llama.cpp itself.

    Args:
        base: Hugging Face directory.
        environment: with llama.cpp.
        output: directory for one file of each of `QUANTIZATIONS`.
        text: of an importance matrix, for one more file of each of `CALIBRATED`, by the name of NAME-imatrix.

    Raises:
        PackageMissing: llama.cpp is not there.
        EnvironmentFault: it cannot write a file.
    """
    from benchmarks.gguf_writer import write_gguf
    from benchmarks.importance_matrix import write_importance
    from shearling.model.checkpoint import load_model, load_tokenizer

    require_packages(RUNTIMES.get("gguf"), environment)
    script = Path(__file__).with_name("gguf_quantizer.py")
    model, tokenizer = load_model(base), load_tokenizer(base)
    output.mkdir(parents=True, exist_ok=True)

    def quantize(quantization: str, name: str, *more: Path) -> None:
        command = [interpreter_of(environment), script, exact, quantization, output / f"{name}.gguf", *more]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr[-2000:].strip()
            raise EnvironmentFault(f"llama.cpp cannot write {name}: {said}", where=environment)

    with tempfile.TemporaryDirectory(dir=output) as temporary:
        exact = write_gguf(Path(temporary) / "F32.gguf", model, tokenizer)
        for quantization in QUANTIZATIONS:
            quantize(quantization, quantization)
        if text is not None:
            windows = windows_of(text.streams(tokenizer), CALIBRATION_WINDOWS, seed=0)
            importance = write_importance(model, windows, Path(temporary) / "importance.npz")
            for quantization in CALIBRATED:
                quantize(quantization, f"{quantization}-imatrix", importance)


def measure_layer(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds a layer at 1 and 16 rows; ratios are to DeepSparse, in the same block."""
    generator = np.random.default_rng(0)
    weights = [generator.standard_normal((WIDTH, WIDTH), dtype=np.float32) / 64 for _ in range(options.layers)]
    for weight in weights:
        weight[generator.random(weight.shape) < 0.5] = 0
    with tempfile.TemporaryDirectory() as temporary:
        onnx_file = Path(temporary) / "layers.onnx"
        _write_onnx(weights, onnx_file)
        requests = _openvino_requests(weights, options.threads)
        with Peer(options.environment, onnx_file, threads=options.threads) as peer:
            results = {f"{rows} rows": _layer_speeds(peer, requests, rows, options) for rows in (1, 16)}
    return results


def _layer_speeds(
    peer: Peer, requests: Mapping[str, Any], rows: int, options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    x = np.random.default_rng(0).standard_normal((rows, WIDTH), dtype=np.float32)
    samples: dict[str, list[float]] = {peer.name: [], **{name: [] for name in requests}}
    for block in range(options.repeats + 1):
        for name in list(samples) if block % 2 else list(samples)[::-1]:
            if name == peer.name:
                seconds = min(peer.ask({"do": "run", "rows": rows, "columns": WIDTH, "repeats": 10})["seconds"])
            else:
                seconds = min(_seconds(requests[name], x) for _ in range(10))
            if block:
                samples[name].append(seconds)
    return {
        name: {
            "ms": round(1e3 * bootstrap_median(values).median / options.layers, 4),
            "speed": round(1 / paired_ratio(values, samples[peer.name]).median, 2),
        }
        for name, values in samples.items()
    }


def _write_onnx(weights: list[np.ndarray], path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("MatMul", ["x" if index == 0 else f"y{index - 1}", f"w{index}"], [f"y{index}"])
        for index in range(len(weights))
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", WIDTH])
        for name in ("x", f"y{len(weights) - 1}")
    ]
    initializers = [
        numpy_helper.from_array(np.ascontiguousarray(weight.T), f"w{index}") for index, weight in enumerate(weights)
    ]
    graph = helper.make_graph(nodes, "layers", ends[:1], ends[1:], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))


def _openvino_requests(weights: list[np.ndarray], threads: int) -> dict[str, Any]:
    import openvino
    from openvino import opset13

    from export.packing.packed_ir import pack_ir
    from shearling.kernel.build import build_library
    from shearling.registry.number_formats import NUMBER_FORMATS

    core = openvino.Core()
    core.add_extension(str(build_library()))
    requests = {}
    for kernel in ("OpenVINO", "ours"):
        for kind in ("bf16", "int8"):
            x = opset13.parameter([-1, WIDTH], dtype=openvino.Type.f32)
            y: Any = x
            for index, weight in enumerate(weights):
                constant = opset13.constant(weight)
                constant.set_friendly_name(f"layer{index}.weight")
                y = opset13.matmul(y, constant, False, True)
            ir = openvino.Model([y], [x], "layers")
            ir = NUMBER_FORMATS.get(kind).load_for("openvino")(ir).ir
            if kernel == "ours":
                pack_ir(ir)
            requests[f"{kernel} {kind}"] = core.compile_model(
                ir, "CPU", {"INFERENCE_NUM_THREADS": str(threads)}
            ).create_infer_request()
    return requests


def _seconds(request: Any, x: np.ndarray) -> float:
    started_s = time.perf_counter()
    request.infer([x])
    return time.perf_counter() - started_s


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
