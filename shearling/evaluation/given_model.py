"""A model that `shearling evaluate` is given: found and looked at first, loaded when its turn comes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from shearling.errors import ArtefactCorrupt, ArtefactError, ArtefactMissing, ModelUnsupported, UsageError
from shearling.evaluation.precision import Precision
from shearling.model.checkpoint_safety import CONFIG
from shearling.model.context_length import read_context_length
from shearling.model.gguf_header import is_gguf, read_header
from shearling.model.head import Head, read_head
from shearling.model.model_artefact import open_model_artefact
from shearling.registry.runtimes import FLASH_ATTENTION, RUNTIMES
from shearling.target import AUTO, Target, read_switch
from shearling.virtual_environment import require_packages

if TYPE_CHECKING:
    from shearling.evaluation.causal_scorer import CausalScorer
    from shearling.evaluation.evaluator import Evaluation, OnRows
    from shearling.evaluation.llama_cpp_process import LlamaCppProcess
    from shearling.evaluation.task_evaluator import TaskEvaluator

OPENVINO_MODEL, ONNX_MODEL, GENAI_CONFIG = "openvino_model.xml", "model.onnx", "genai_config.json"
VOCABULARY = "tokenizer.ggml.tokens"

Format = Literal["torch", "openvino", "onnx", "onnx-genai", "gguf"]
"""Of the formats that run, those that can be evaluated."""


class LoadedModel(Protocol):
    """A given model in memory.

    Attributes:
        sparsity: share of zeros in its linear layers; None where nothing says it.
    """

    sparsity: float | None

    def measure(self, evaluator: TaskEvaluator, on_rows: OnRows) -> Evaluation:
        """Evaluate it on all rows."""
        ...

    def scorer(self) -> CausalScorer:
        """It as lm-evaluation-harness sees it, with its logits at hand.

        Raises:
            ModelUnsupported: it is no language model of a form that is known.
        """
        ...


@dataclass(frozen=True)
class GivenModel:
    """A model, looked at and not loaded.

    Attributes:
        target: as the user gave it.
        path: the directory where its config.json is, or a GGUF file.
        format: in which it is.
        head: what it is for.
    """

    target: Target
    path: Path
    format: Format
    head: Head

    @contextmanager
    def load(self, precision: Precision) -> Iterator[LoadedModel]:
        """Load it; a process that it runs in ends with the context.

        Args:
            precision: of the arithmetic in torch.

        Raises:
            ArtefactError: it cannot be loaded, or what is done with it in the context shows that it cannot be used.
        """
        try:
            with self._load(precision) as model:
                yield model
        except ArtefactError as error:
            # What computes with it does not know where it came from.
            error.where = error.where or str(self.path)
            raise

    @contextmanager
    def _load(self, precision: Precision) -> Iterator[LoadedModel]:
        if self.format == "torch":
            yield _TorchModel(self.path, precision)
        elif self.format == "openvino":
            yield _OpenVINOModel(self.path / OPENVINO_MODEL, self.target.properties)
        elif self.format in ("onnx", "onnx-genai"):
            yield _OnnxModel(self.path / ONNX_MODEL)
        else:
            import torch

            from shearling.evaluation.llama_cpp_process import open_llama_cpp

            threads = torch.get_num_threads()
            flash = read_switch(self.target.properties, FLASH_ATTENTION, default=True)
            environment = self.target.environment
            with open_llama_cpp(self.path, environment=environment, threads=threads, flash_attention=flash) as process:
                yield _GgufModel(self.path, process)


def find_given_model(target: Target) -> GivenModel:
    """Look for the model that a user names, verify the artefact that it belongs to, and check what else can be checked
    before anything is loaded.

    Raises:
        ArtefactMissing: nothing there, or not in that format.
        ArtefactCorrupt: a file differs from the manifest.
        ArtefactMismatch: an artefact of a kind that does not run.
        ModelUnsupported: a GGUF file without a vocabulary.
        UsageError: a format or a setting that an evaluation does not honour.
        PackageMissing: llama.cpp is not installed where the target says.
    """
    if target.format not in (AUTO, *get_args(Format)):
        raise UsageError(
            f"models are evaluated as {', '.join(get_args(Format))}, not as {target.format}",
            where=target.label,
            remedy="Leave format= out, or name one of these",
        )
    if is_gguf(target.path):
        return _find_gguf(target)
    for path in (target.path, *(target.path / name for name in ("model", "openvino", "onnx", "onnx-genai"))):
        if not (path / CONFIG).is_file():
            continue
        found = _format_of(path)
        if target.format in (AUTO, found):
            _check_settings(target, found)
            open_model_artefact(path)
            return GivenModel(target, path, found, read_head(path))
    raise ArtefactMissing(
        "no model here" if target.format == AUTO else f"no {target.format} model here",
        where=target.path,
        remedy="Give RUN/base, RUN/sparse, RUN/export, any model directory or a GGUF file",
    )


def _format_of(directory: Path) -> Format:
    if (directory / OPENVINO_MODEL).is_file():
        return "openvino"
    if (directory / GENAI_CONFIG).is_file():
        return "onnx-genai"
    return "onnx" if (directory / ONNX_MODEL).is_file() else "torch"


def _find_gguf(target: Target) -> GivenModel:
    if target.format not in (AUTO, "gguf"):
        raise ArtefactMissing(f"a GGUF file, not {target.format}", where=target.path, remedy="Leave format= out")
    _check_settings(target, "gguf")
    if VOCABULARY not in read_header(target.path).fields:
        raise ModelUnsupported(
            "the GGUF file has no vocabulary, so that texts cannot be encoded",
            where=target.path,
            remedy="Convert the model again, together with its tokenizer",
        )
    require_packages(RUNTIMES.get("gguf"), target.environment)
    return GivenModel(target, target.path, "gguf", "language_model")


def _check_settings(target: Target, found: Format) -> None:
    if target.environment is not None and found != "gguf":
        raise UsageError(
            f"a model in {found} is evaluated in the environment that runs, a GGUF file alone in another",
            where=target.label,
            remedy="Leave environment= out",
        )
    known = {FLASH_ATTENTION} if found == "gguf" else set()
    strange = [name for name in target.properties if name not in known]
    if strange and found != "openvino":
        raise UsageError(
            f"{', '.join(strange)}: a model in {found} is evaluated without "
            + (f"properties other than {', '.join(known)}" if known else "properties"),
            where=target.label,
            remedy="Leave them out; those of OpenVINO are for OpenVINO models",
        )
    if known:
        read_switch(target.properties, FLASH_ATTENTION, default=True)


class _TorchModel:
    def __init__(self, path: Path, precision: Precision) -> None:
        from shearling.model.checkpoint import load_model, load_tokenizer
        from shearling.model.layers import find_layers

        self._model, self._tokenizer, self._precision = load_model(path), load_tokenizer(path), precision
        transformer = find_layers(self._model)
        weights = [linear.weight for linear in transformer.linears().values()]
        # Routers and whatever else is no linear is as dense as it is.
        total = sum(weight.numel() for weight in weights) + sum(transformer.left_dense().values())
        zeros = sum(weight.numel() - int(weight.count_nonzero()) for weight in weights)
        self.sparsity: float | None = zeros / total

    def measure(self, evaluator: TaskEvaluator, on_rows: OnRows) -> Evaluation:
        return evaluator.on_torch(self._model, self._tokenizer, precision=self._precision, on_rows=on_rows)()

    def scorer(self) -> CausalScorer:
        from shearling.evaluation.evaluator import torch_scorer

        return torch_scorer(self._model, self._tokenizer, precision=self._precision)


class _OpenVINOModel:
    def __init__(self, xml: Path, properties: Mapping[str, str]) -> None:
        from shearling.kernel.openvino_extension import PREFERRED_PROPERTIES, compile_ir
        from shearling.model.checkpoint import load_tokenizer

        self._compiled, self._tokenizer = (
            compile_ir(xml, properties=properties, preferred=PREFERRED_PROPERTIES, packed=None),
            load_tokenizer(xml.parent),
        )
        self._max_length = read_context_length(xml.parent, self._tokenizer)
        self.sparsity = _certified_sparsity(xml)

    def measure(self, evaluator: TaskEvaluator, on_rows: OnRows) -> Evaluation:
        return evaluator.on_openvino(self._compiled, self._tokenizer, max_length=self._max_length, on_rows=on_rows)()

    def scorer(self) -> CausalScorer:
        from shearling.evaluation.openvino_scorer import OpenVINOScorer

        return OpenVINOScorer(self._compiled, self._tokenizer, max_length=self._max_length)


class _OnnxModel:
    def __init__(self, path: Path) -> None:
        from shearling.kernel.onnx_runtime_extension import open_session
        from shearling.model.checkpoint import load_tokenizer

        self._session, self._tokenizer = open_session(path), load_tokenizer(path.parent)
        self._max_length = read_context_length(path.parent, self._tokenizer)
        self.sparsity: float | None = None

    def measure(self, evaluator: TaskEvaluator, on_rows: OnRows) -> Evaluation:
        return evaluator.on_onnx(self._session, self._tokenizer, max_length=self._max_length, on_rows=on_rows)()

    def scorer(self) -> CausalScorer:
        from shearling.evaluation.onnx_scorer import OnnxScorer

        return OnnxScorer(self._session, self._tokenizer, max_length=self._max_length)


class _GgufModel:
    def __init__(self, file: Path, process: LlamaCppProcess) -> None:
        from shearling.model.gguf_tokenizer import rebuild_tokenizer

        self._process, self._tokenizer = process, rebuild_tokenizer(read_header(file))
        self.sparsity: float | None = None

    def measure(self, evaluator: TaskEvaluator, on_rows: OnRows) -> Evaluation:
        return evaluator.on_llama_cpp(self._process, self._tokenizer, on_rows=on_rows)()

    def scorer(self) -> CausalScorer:
        from shearling.evaluation.llama_cpp_scorer import LlamaCppScorer

        return LlamaCppScorer(self._process, self._tokenizer)


def _certified_sparsity(xml: Path) -> float | None:
    # What the export counted and certified.
    from shearling.kernel.openvino_extension import core_for

    model: Any = core_for(xml).read_model(xml)
    share = ["sparsity", "share"]
    if not model.has_rt_info(share):
        return None
    text = model.get_rt_info(share).astype(str)
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found <= 1:
        raise ArtefactCorrupt(f"its share of zeros is {text!r}, not from 0 to 1", where=xml, remedy="Export again")
    return found
