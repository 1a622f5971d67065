"""What `python -m serve` can run: one record for each runtime, named for the format that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shearling.registry.registry import Registry, SingleEntry

DRAFT = "DRAFT"
"""Of OpenVINO: the directory of a smaller model that guesses."""
FLASH_ATTENTION = "FLASH_ATTENTION"
"""YES or NO: whether llama.cpp computes attention in one pass, as its own programs choose."""


@dataclass(frozen=True, kw_only=True)
class RuntimeEntry(SingleEntry):
    """A runtime, and how a model for it is recognised.

    The name is that of the format: as `--format` and `DIR@format=NAME` take it, and as benchmarks store it. The
    implementation is a class that fulfils `serve.runtimes.runtime.Runtime`.

    Attributes:
        title: what people call the runtime.
        model_file: the file whose presence makes a directory one of this format.
        weights: glob of the files beside it that hold graph and weights; they make the digest and the size.
        part: the sub-directory of an export that holds this format; None where exports have none.
        read_file: for models that are one file, anywhere: `module:function` from a path to its
            `serve.runtimes.deployment.ModelFacts`, None where it is no such file. `model_file` is then its usual name.
        devices: as `--device` names them; `GPU` stands for `GPU.1`, too.
        require_device: `module:function` that raises `DeviceUnavailable` where a device of these is not there; None
            where every machine has them.
        packages: what the implementation imports, and what pip installs it as.
        companions: further modules to import before the load time of a model is counted.
        properties: that it knows, for `DIR@NAME=VALUE`.
        takes_any_property: it judges properties itself.
        file_suffix: of models that are one file and lie beside their weights, such as any other `.xml`.
        runs_in_own_environment: it may be installed in a virtual environment of its own, of this version of Python,
            and is then measured there, by our packages behind its own.
        visited: what a measuring process imports in somebody else's environment, of any version of Python, without
            anything of ours, by an engine of `serve.visitor` of the same name. Empty where it cannot.
        visited_properties: those of `properties` that this engine knows, too.
    """

    title: str
    model_file: str
    weights: str
    part: str | None = None
    read_file: Any = None
    devices: tuple[str, ...] = ("CPU",)
    require_device: Any = None
    packages: Mapping[str, str] = field(default_factory=dict)
    companions: tuple[str, ...] = ()
    properties: tuple[str, ...] = ()
    takes_any_property: bool = False
    file_suffix: str | None = None
    runs_in_own_environment: bool = False
    visited: tuple[str, ...] = ()
    visited_properties: tuple[str, ...] = ()

    @property
    def takes_environment(self) -> bool:
        """Whether it is measured where `MODEL@environment=DIR` says."""
        return self.runs_in_own_environment or bool(self.visited)

    def has_device(self, device: str) -> bool:
        """Whether it can use such a device, on some machine."""
        return device.partition(".")[0] in self.devices


RUNTIMES = Registry(
    noun="runtime",
    group="shearling.runtimes",
    entry_type=RuntimeEntry,
    entries=(
        RuntimeEntry(
            name="openvino",
            title="OpenVINO",
            summary="OpenVINO IR, through OpenVINO GenAI",
            implementation="serve.runtimes.openvino:OpenVINORuntime",
            model_file="openvino_model.xml",
            weights="openvino_model.*",
            part="openvino",
            devices=("CPU", "GPU", "NPU"),
            require_device="serve.runtimes.openvino:require_device",
            packages={"openvino": "openvino", "openvino_genai": "openvino-genai"},
            takes_any_property=True,
            file_suffix=".xml",
            visited=("openvino",),
        ),
        # Before plain ONNX Runtime, which runs the same directory.
        RuntimeEntry(
            name="onnx-genai",
            title="ONNX Runtime GenAI",
            summary="ONNX with genai_config.json, through ONNX Runtime GenAI",
            implementation="serve.runtimes.onnx_genai:OnnxGenAIRuntime",
            model_file="genai_config.json",
            weights="model.onnx*",
            part="onnx-genai",
            devices=("CPU", "CUDA"),
            require_device="serve.runtimes.onnx_genai:require_device",
            packages={"onnxruntime_genai": "'onnxruntime-genai>=0.18,<0.19'"},
            companions=("tokenizers",),
        ),
        RuntimeEntry(
            name="onnx",
            title="ONNX Runtime",
            summary="ONNX with a KV cache, through ONNX Runtime",
            implementation="serve.runtimes.onnx:OnnxRuntime",
            model_file="model.onnx",
            weights="model.onnx*",
            part="onnx",
            devices=("CPU", "CUDA", "TENSORRT"),
            require_device="serve.runtimes.onnx_provider:require_device",
            packages={"onnxruntime": "'onnxruntime>=1.32,<1.33'"},
            companions=("tokenizers",),
            file_suffix=".onnx",
            visited=("onnxruntime",),
        ),
        RuntimeEntry(
            name="torch",
            title="PyTorch",
            summary="a Hugging Face directory, through PyTorch: the reference",
            implementation="serve.runtimes.pytorch:TorchRuntime",
            model_file="config.json",
            weights="*.safetensors",
            part="model",
            devices=("CPU", "CUDA"),
            require_device="serve.runtimes.pytorch:require_device",
            packages={"torch": "torch", "transformers": "transformers"},
            properties=("SEMI_STRUCTURED",),
            visited=("torch", "transformers"),
        ),
        RuntimeEntry(
            name="gguf",
            title="llama.cpp",
            summary="a GGUF file, through llama.cpp, to compare with",
            implementation="serve.runtimes.llama_cpp:LlamaCppRuntime",
            model_file="*.gguf",
            weights="*.gguf",
            read_file="serve.runtimes.llama_cpp:read_model_facts",
            packages={"llama_cpp": "llama-cpp-python"},
            properties=(FLASH_ATTENTION,),
            visited=("llama_cpp",),
            visited_properties=(FLASH_ATTENTION,),
        ),
        RuntimeEntry(
            name="deepsparse",
            title="DeepSparse",
            summary="a decoder of static shapes, through DeepSparse, to compare with",
            implementation="serve.runtimes.deepsparse:DeepSparseRuntime",
            model_file="static_decoder.onnx",
            weights="static_decoder.onnx",
            packages={"deepsparse": "deepsparse==1.8.0 numpy==1.26.4 onnx==1.14.1 'setuptools<81'"},
            companions=("tokenizers",),
            runs_in_own_environment=True,
        ),
    ),
)
