"""OpenVINO through `openvino_genai.LLMPipeline`; timings are its own perf_metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.runtimes.deployment import Deployment
from serve.runtimes.known_crash import avoid_known_crash
from serve.runtimes.runtime import Decoding, Generation, OnText, RunOptions, RuntimeFacts
from serve.runtimes.tokenization import no_chat_template
from serve.visitor.genai import TIMING_SOURCE, prompt_of, read_generation
from serve.visitor.ir_settings import OF_GENAI, executed_precision, make_properties, reported_settings
from shearling.console import log
from shearling.errors import (
    ArtefactCorrupt,
    ArtefactMissing,
    DeviceUnavailable,
    EnvironmentFault,
    ShearlingError,
    UsageError,
)
from shearling.kernel.decoder_fusion import open_pipeline
from shearling.kernel.openvino_core import openvino_core
from shearling.kernel.openvino_extension import (
    PREFERRED_PROPERTIES,
    check_packed_weights,
    read_ir,
    required_extensions,
)
from shearling.kernel.runtime_refusal import last_line, refusals

if TYPE_CHECKING:
    import openvino
    import openvino_genai

REQUIRED = (
    "openvino_model.bin",
    "openvino_tokenizer.xml",
    "openvino_tokenizer.bin",
    "openvino_detokenizer.xml",
    "openvino_detokenizer.bin",
)
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
        UsageError: OpenVINO refuses a property of this deployment.
        CompilerMissing: the model needs our operators, and they cannot be built here.
    """

    def __init__(self, deployment: Deployment, options: RunOptions) -> None:
        self._directory = deployment.directory
        _require_tokenizer(self._directory)
        self.facts, properties = _prepare(deployment, options)
        try:
            self._pipeline = self._open_pipeline(deployment.model_file, options.device, properties)
        except RuntimeError as error:
            raise ArtefactCorrupt(
                f"OpenVINO cannot load it: {last_line(error)}", where=self._directory, remedy="Export again"
            ) from error
        self._tokenizer = self._pipeline.get_tokenizer()

    def _open_pipeline(self, xml: Path, device: str, properties: dict[str, Any]) -> openvino_genai.LLMPipeline:
        import openvino_genai

        model, obstacle = read_ir(xml, device=device, properties=properties)
        if obstacle is not None:
            if "extensions" in properties:
                self.facts.settings["attention"] = f"OpenVINO's: {obstacle}"
            return openvino_genai.LLMPipeline(self._directory, device, **properties)
        self.facts.settings["attention"] = "in the layers"
        try:
            return open_pipeline(model, self._directory, device, properties)
        except OSError as error:
            raise EnvironmentFault(
                f"the model cannot be written to a temporary file: {error}",
                where=self._directory,
                remedy="Make room there, name another directory in TMPDIR, or add @ATTENTION_BACKEND=SDPA, which "
                "needs no such file and is slower",
            ) from error

    def has_chat_template(self) -> bool:
        """Whether `encode` can format a chat turn."""
        return bool(self._tokenizer.get_original_chat_template())

    def encode(self, prompt: str, *, chat: bool) -> list[int]:
        """Token ids by the tokenizer inside the export."""
        if chat and not self.has_chat_template():
            raise no_chat_template(self._directory)
        if chat:
            prompt = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True
            )
        with refusals(self._directory):
            ids = self._tokenizer.encode(prompt, add_special_tokens=not chat).input_ids.data
        return [int(token) for token in ids[0]]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text by the detokenizer inside the export."""
        with refusals(self._directory):
            return str(self._tokenizer.decode(list(token_ids)))

    def generate(self, rows: Sequence[Sequence[int]], work: Decoding) -> Generation:
        """See `Runtime.generate`."""
        config = greedy(work.max_new_tokens, work.end_ids)
        streamer = () if work.on_text is None else (_streamer(work.on_text),)
        with refusals(self._directory):
            result = self._pipeline.generate(prompt_of(rows), config, *streamer)
        read = read_generation(result, len(rows))
        tokens, gaps_s = read["token_ids"], tuple(read["gaps_s"])
        if not work.end_ids and (len(tokens) != work.max_new_tokens or len(gaps_s) != work.max_new_tokens - 1):
            raise ShearlingError(
                f"OpenVINO made {len(tokens)} tokens and {len(gaps_s)} gaps, {work.max_new_tokens} were asked for",
                where=self._directory,
            )
        if tokens and tokens[-1] in work.end_ids:
            tokens.pop()
        return Generation(
            token_ids=tuple(tokens),
            ttft_s=read["ttft_s"],
            gaps_s=gaps_s,
            total_s=read["total_s"],
        )

    def close(self) -> None:
        """Give memory and threads back."""
        del self._tokenizer, self._pipeline


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

    if with_tokenizer:
        _require_tokenizer(deployment.directory)
    facts, properties = _prepare(deployment, options)
    try:
        pipeline = openvino_genai.ContinuousBatchingPipeline(
            deployment.directory, openvino_genai.SchedulerConfig(), options.device, properties
        )
    except RuntimeError as error:
        raise ArtefactCorrupt(
            f"OpenVINO cannot load it: {last_line(error)}", where=deployment.directory, remedy="Export again"
        ) from error
    return pipeline, facts.model_copy(
        update={"timing_source": "openvino_genai perf_metrics of each request: get_ttft, get_tpot"}
    )


def _require_tokenizer(directory: Path) -> None:
    missing = [name for name in REQUIRED if not (directory / name).is_file()]
    if missing:
        raise ArtefactMissing(
            f"OpenVINO GenAI needs {', '.join(missing)}",
            where=directory,
            remedy="Export again with: python -m export; bench and check measure it without: --no-genai",
        )


def _prepare(deployment: Deployment, options: RunOptions) -> tuple[RuntimeFacts, dict[str, Any]]:
    """What the device will do with this deployment, and the arguments that make a pipeline do it."""
    xml = deployment.model_file
    options, avoided = avoid_known_crash([deployment], options)
    if avoided:
        log.print(avoided)
    extensions = required_extensions(xml)
    asked = make_properties(
        options.precision,
        threads=options.threads,
        hint=options.hint,
        device=options.device,
        preferred=PREFERRED_PROPERTIES if extensions else None,
    )
    properties: dict[str, Any] = asked | deployment.properties
    check_packed_weights(xml)
    of_device = {name: value for name, value in properties.items() if name not in OF_GENAI}
    facts = _executed(options, probe_device(options.device, of_device, label=deployment.label))
    if extensions:
        facts.settings["extensions"] = ",".join(library.name for library in extensions)
        properties["extensions"] = [str(library) for library in extensions]
    return facts, properties


def probe_device(device: str, properties: Mapping[str, str], *, label: str) -> openvino.CompiledModel:
    """A model of one operator, compiled with these properties, to ask what the device makes of them.

    A pipeline does not show its compiled model, and compiling the real one twice would double time and memory.

    Args:
        device: of OpenVINO.
        properties: of the compilation.
        label: of what they are for, in the error.

    Raises:
        UsageError: the device refuses a property or its value.
    """
    import openvino
    from openvino import opset13

    value = opset13.parameter([1, 4], dtype=openvino.Type.f32)
    try:
        return openvino_core().compile_model(
            openvino.Model([opset13.relu(value)], [value], "probe"), device, dict(properties)
        )
    except RuntimeError as error:
        raise UsageError(f"OpenVINO refuses {dict(properties)}: {last_line(error)}", where=label) from error


def _executed(options: RunOptions, compiled: openvino.CompiledModel) -> RuntimeFacts:
    import openvino

    precision = executed_precision(compiled)
    if options.precision not in ("default", precision):
        raise DeviceUnavailable(
            f"{options.device} executes {precision} where {options.precision} was asked for",
            remedy="Use --precision fp32, or leave it at default",
        )
    return RuntimeFacts(
        runtime=f"OpenVINO GenAI {openvino.__version__.partition('-')[0]}",
        provider=options.device,
        precision=precision,
        settings=reported_settings(compiled),
        timing_source=TIMING_SOURCE,
    )


def _streamer(on_text: OnText) -> Callable[[str], openvino_genai.StreamingStatus]:
    import openvino_genai

    def stream(piece: str) -> openvino_genai.StreamingStatus:
        on_text(piece)
        return openvino_genai.StreamingStatus.RUNNING

    return stream


def greedy(max_new_tokens: int, end_ids: frozenset[int]) -> openvino_genai.GenerationConfig:
    """A greedy configuration; without `end_ids` it computes all `max_new_tokens`."""
    import openvino_genai

    # A fresh configuration: what generation_config.json says of sampling and penalties does not belong in a greedy run.
    config = openvino_genai.GenerationConfig()
    config.do_sample = False
    config.max_new_tokens = max_new_tokens
    config.ignore_eos = not end_ids
    if end_ids:
        config.stop_token_ids = set(end_ids)
        config.set_eos_token_id(min(end_ids))
    return config
