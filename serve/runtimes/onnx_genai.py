"""ONNX Runtime GenAI: its own loop, cache and search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serve.runtimes.deployment import Deployment
from serve.runtimes.recording import Recording
from serve.runtimes.runtime import Decoding, Generation, RunOptions, RuntimeFacts
from serve.runtimes.tokenization import TextTokenizer, TokenizedRuntime
from shearling.errors import DeviceUnavailable
from shearling.kernel.genai_extension import load_genai_model
from shearling.kernel.loading.genai_document import GREEDY
from shearling.kernel.onnx_runtime_extension import DOMAIN, needs_operators
from shearling.kernel.runtime_refusal import refusals

PROVIDERS = {"CPU": None, "CUDA": "cuda"}
CUDA_REMEDY = (
    "Needs an NVIDIA driver with CUDA and cuDNN, and: pip uninstall onnxruntime onnxruntime-genai && "
    "pip install 'onnxruntime-genai-cuda>=0.18,<0.19' (the packages exclude each other); or use --device CPU"
)
CACHE = "past_key_values."


class OnnxGenAIRuntime(TokenizedRuntime):
    """A directory with `genai_config.json`.

    Raises:
        ArtefactCorrupt: GenAI cannot read the model.
        DeviceUnavailable: another precision than the file holds, or the sparse kernel on another device than a CPU.
        PackageMissing: the model needs our operator, and the headers of ONNX Runtime are not installed.
        CompilerMissing: it needs our operator, which cannot be built here.
    """

    def __init__(self, deployment: Deployment, options: RunOptions) -> None:
        self._directory = deployment.directory
        self._options = options
        self._packed = needs_operators(self._directory / "model.onnx")
        if self._packed and options.device != "CPU":
            raise DeviceUnavailable(
                f"the sparse kernel runs on CPUs, not on {options.device}",
                where=self._directory,
                remedy="Use --device CPU, or a stock export",
            )
        self._tokenizer = TextTokenizer(self._directory)
        self._model = self._load()
        self.facts = self._facts()

    def generate(self, rows: Sequence[Sequence[int]], work: Decoding) -> Generation:
        """See `Runtime.generate`."""
        import numpy as np
        import onnxruntime_genai

        recording = Recording(work, self)
        with refusals(self._directory):
            params = onnxruntime_genai.GeneratorParams(self._model)
            # The cache is made for so many positions at once.
            params.set_search_options(batch_size=len(rows), max_length=len(rows[0]) + work.max_new_tokens, **GREEDY)
            generator = onnxruntime_genai.Generator(self._model, params)
            generator.append_tokens(np.asarray([list(row) for row in rows], dtype=np.int32))
            while not recording.complete:
                generator.generate_next_token()
                recording.take(*map(int, generator.get_next_tokens()))
        return recording.finish()

    def close(self) -> None:
        """Give memory and threads back."""
        del self._model

    def _load(self) -> Any:
        threads = self._options.threads
        chosen = {} if threads is None else {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        return load_genai_model(
            self._directory,
            session_options={"log_severity_level": 3, **chosen},
            provider=PROVIDERS[self._options.device],
        )

    def _facts(self) -> RuntimeFacts:
        import onnxruntime_genai

        precision = graph_precision(self._directory / "model.onnx")
        if self._options.precision not in ("default", precision):
            raise DeviceUnavailable(
                f"this ONNX model computes in {precision}, {self._options.precision} was asked for",
                where=self._directory,
                remedy="ONNX Runtime takes the precision of the file: use --precision default, or export another",
            )
        settings = {"intra_op_num_threads": str(self._options.threads or "default")}
        return RuntimeFacts(
            runtime=f"ONNX Runtime GenAI {onnxruntime_genai.__version__}",
            provider=str(self._model.device_type),
            precision=precision,
            settings=settings | ({"custom_operators": DOMAIN} if self._packed else {}),
            timing_source="monotonic clock around each token of the loop of onnxruntime_genai",
        )


def graph_precision(path: Path) -> str:
    """Of the arithmetic of a graph: that of its cache."""
    import onnx

    inputs = onnx.load(str(path), load_external_data=False).graph.input
    kinds = {item.type.tensor_type.elem_type for item in inputs if item.name.startswith(CACHE)}
    return {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16"}.get(min(kinds, default=0), "unknown")


def require_device(device: str) -> None:
    """Check that ONNX Runtime GenAI can use a device.

    Raises:
        DeviceUnavailable: it cannot; says how to get the device.
    """
    import onnxruntime_genai

    if device != "CPU" and not onnxruntime_genai.is_cuda_available():
        raise DeviceUnavailable(f"the installed ONNX Runtime GenAI has no {device}", remedy=CUDA_REMEDY)
