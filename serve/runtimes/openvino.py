"""OpenVINO: one text at a time, and many at once in continuous batching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from serve.runtimes.deployment import Deployment
from serve.runtimes.openvino_decoding import open_decoding
from serve.runtimes.openvino_loading import pipeline_directory, prepare, require_tokenizer
from serve.runtimes.runtime import Decoding, Generation, RunOptions, RuntimeFacts
from serve.runtimes.speculation.settings import read_speculation
from serve.runtimes.tokenization import chat_template_fails, no_chat_template, told_by_minja
from shearling.errors import ArtefactCorrupt, DeviceUnavailable, UsageError
from shearling.kernel.loading.packed_model import LoadedIr
from shearling.kernel.loading.prompt_encoding import encode_prompt_in_genai
from shearling.kernel.openvino_core import openvino_core
from shearling.kernel.runtime_refusal import last_line, refusals

if TYPE_CHECKING:
    import openvino_genai

INTEL_GPU = (
    "Install the Intel GPU driver (compute runtime; intel-opencl-icd on Debian and Ubuntu) and let this user into the "
    "group render, or use --device CPU"
)


class OpenVINORuntime:
    """A stateful IR with its converted tokenizer.

    Raises:
        ArtefactMissing: a file that GenAI needs is absent.
        DeviceUnavailable: the device executes another precision than was asked for.
        ArtefactCorrupt: OpenVINO cannot read the model.
        UsageError: OpenVINO refuses a property of this deployment, or its guesses are not asked for rightly.
        CompilerMissing: the model needs our operators, and they cannot be built here.
    """

    def __init__(self, deployment: Deployment, options: RunOptions) -> None:
        self._directory = deployment.directory
        require_tokenizer(self._directory)
        try:
            self.facts, self._decoding = open_decoding(deployment, options)
        except RuntimeError as error:
            raise ArtefactCorrupt(
                f"OpenVINO cannot load it: {last_line(error)}", where=self._directory, remedy="Export again"
            ) from error
        self._tokenizer = self._decoding.tokenizer

    def has_chat_template(self) -> bool:
        """Whether `encode` can format a chat turn."""
        return bool(self._tokenizer.get_original_chat_template())

    def encode(self, prompt: str, *, chat: bool) -> list[int]:
        """Token ids by the tokenizer inside the export.

        Raises:
            UsageError: `chat`, and there is no template.
            ModelUnsupported: the template fails.
        """
        if chat and not self.has_chat_template():
            raise no_chat_template(self._directory)
        if chat:
            turns = [{"role": "user", "content": prompt}]
            try:
                prompt = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True)
            except RuntimeError as error:
                raise chat_template_fails(told_by_minja(error), where=self._directory) from error
        with refusals(self._directory):
            if not chat:
                return encode_prompt_in_genai(prompt, self._tokenizer)
            ids = self._tokenizer.encode(prompt, add_special_tokens=False).input_ids.data
        return [int(token) for token in ids[0]]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text by the detokenizer inside the export."""
        with refusals(self._directory):
            return str(self._tokenizer.decode(list(token_ids)))

    def generate(self, rows: Sequence[Sequence[int]], work: Decoding) -> Generation:
        """See `Runtime.generate`."""
        return self._decoding.generate(rows, work)

    def close(self) -> None:
        """Give memory and threads back."""
        del self._tokenizer, self._decoding


def require_device(device: str) -> None:
    """Check that OpenVINO sees a device.

    Raises:
        DeviceUnavailable: it does not; says how to get it.
    """
    available = list(openvino_core().available_devices)
    if device not in available and device not in {name.partition(".")[0] for name in available}:
        raise DeviceUnavailable(
            f"OpenVINO sees no {device} here, only {', '.join(available)}",
            remedy=INTEL_GPU if device.startswith("GPU") else "Use --device CPU",
        )


def load_batching_pipeline(
    deployment: Deployment, options: RunOptions, *, with_tokenizer: bool = False
) -> tuple[openvino_genai.ContinuousBatchingPipeline, RuntimeFacts]:
    """The same model for many requests at once.

    Args:
        deployment: an OpenVINO export.
        options: device, precision, threads.
        with_tokenizer: whether it will be given text, not tokens alone.

    Raises:
        ShearlingError: see `OpenVINORuntime`.
    """
    import openvino_genai

    if read_speculation(deployment.properties, label=deployment.label) is not None:
        raise UsageError(
            "guesses are made for one text at a time",
            where=deployment.label,
            remedy="Leave them out here, or measure them with: python -m serve bench",
        )
    if with_tokenizer:
        require_tokenizer(deployment.directory)
    facts, loaded = prepare(deployment, options, batching=True)
    try:
        with pipeline_directory(deployment, loaded) as directory:
            pipeline = openvino_genai.ContinuousBatchingPipeline(
                directory, openvino_genai.SchedulerConfig(), options.device, loaded.properties
            )
    except RuntimeError as error:
        raise ArtefactCorrupt(
            f"OpenVINO cannot load it: {last_line(error)}", where=deployment.directory, remedy="Export again"
        ) from error
    return pipeline, facts.model_copy(
        update={"timing_source": "openvino_genai perf_metrics of each request: get_ttft, get_tpot"}
    )


def load_lone_pipeline(deployment: Deployment, options: RunOptions) -> openvino_genai.LLMPipeline | None:
    """The pipeline that makes one text fastest, where it is not the one of many requests: that of a packed decoder
    whose attention is in its layers. Both may be loaded: they share the weights.

    Args:
        deployment: an OpenVINO export.
        options: device, precision, threads.

    Raises:
        ShearlingError: see `OpenVINORuntime`.
    """
    _, loaded = prepare(deployment, options)
    if not isinstance(loaded, LoadedIr) or loaded.attention is not None:
        return None
    with refusals(deployment.directory):
        return loaded.open_pipeline(options.device)
