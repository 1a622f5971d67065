"""OpenVINO through `openvino_genai.LLMPipeline`; timings are its own perf_metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from shearling.kernel.loading.packed_choice import PACKED
from shearling.kernel.loading.packed_model import LoadedIr
from shearling.kernel.openvino_core import openvino_core
from shearling.kernel.openvino_extension import (
    PREFERRED_PROPERTIES,
    load_packed,
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
PREFERRED_BATCHING = {"KV_CACHE_PRECISION": "f16"}
"""Of packed models: with the default, u8, a token of one request or of eight took a tenth longer."""
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
        self.facts, loaded = _prepare(deployment, options)
        try:
            self._pipeline = _open_pipeline(self._directory, options.device, loaded)
        except RuntimeError as error:
            raise ArtefactCorrupt(
                f"OpenVINO cannot load it: {last_line(error)}", where=self._directory, remedy="Export again"
            ) from error
        self._tokenizer = self._pipeline.get_tokenizer()

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
    facts, loaded = _prepare(deployment, options, batching=True)
    try:
        with _directory(deployment, loaded) as directory:
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
    _, loaded = _prepare(deployment, options)
    if not isinstance(loaded, LoadedIr) or loaded.attention is not None:
        return None
    with refusals(deployment.directory):
        return loaded.open_pipeline(options.device)


def _require_tokenizer(directory: Path) -> None:
    missing = [name for name in REQUIRED if not (directory / name).is_file()]
    if missing:
        raise ArtefactMissing(
            f"OpenVINO GenAI needs {', '.join(missing)}",
            where=directory,
            remedy="Export again with: python -m export; bench and check measure it without: --no-genai",
        )


@dataclass(frozen=True)
class _StockIr:
    """A model without operators of ours; what `LoadedIr` is for one that has some."""

    properties: dict[str, Any]


def _prepare(
    deployment: Deployment, options: RunOptions, *, batching: bool = False
) -> tuple[RuntimeFacts, LoadedIr | _StockIr]:
    """What the device will do with this deployment, and how it is loaded.

    Args:
        deployment: an OpenVINO export.
        options: device, precision, threads.
        batching: whether it is for continuous batching.
    """
    xml = deployment.model_file
    options, avoided = avoid_known_crash([deployment], options)
    if avoided:
        log.print(avoided)
    extensions = required_extensions(xml)
    asked, preferred = (
        {
            **make_properties(
                options.precision, threads=options.threads, hint=options.hint, device=options.device, preferred=more
            ),
            **deployment.properties,
        }
        for more in (None, {**PREFERRED_PROPERTIES, **(PREFERRED_BATCHING if batching else {})})
    )
    if not extensions:
        return _executed(options, _probe(options.device, asked, deployment)), _StockIr(dict(asked))
    # What OpenVINO refuses is refused before anything is measured with it.
    probed = _probe(options.device, preferred, deployment)
    with refusals(xml.parent):
        loaded = load_packed(
            xml,
            device=options.device,
            properties=asked,
            packed_properties=preferred,
            obstacle="continuous batching rewrites it" if batching else None,
        )
    facts = _executed(
        options, probed if not loaded.choice.stock else _probe(options.device, loaded.properties, deployment)
    )
    facts.settings["extensions"] = ",".join(library.name for library in extensions)
    facts.settings["attention"] = "in the layers" if loaded.attention is None else f"OpenVINO's: {loaded.attention}"
    if loaded.choice.reason is not None:
        facts.settings["packed"] = loaded.choice.reason
    loaded.properties["extensions"] = [str(library) for library in extensions]
    return facts, loaded


def _probe(device: str, properties: Mapping[str, Any], deployment: Deployment) -> openvino.CompiledModel:
    of_device = {name: value for name, value in properties.items() if name not in OF_GENAI}
    return probe_device(device, of_device, label=deployment.label)


def _open_pipeline(directory: Path, device: str, loaded: LoadedIr | _StockIr) -> openvino_genai.LLMPipeline:
    import openvino_genai

    if isinstance(loaded, LoadedIr):
        return loaded.open_pipeline(device)
    return openvino_genai.LLMPipeline(directory, device, **loaded.properties)


@contextmanager
def _directory(deployment: Deployment, loaded: LoadedIr | _StockIr) -> Iterator[Path]:
    """Where a pipeline that takes nothing but a directory finds the model."""
    if isinstance(loaded, _StockIr):
        yield deployment.directory
        return
    try:
        with loaded.directory() as directory:
            yield directory
    except OSError as error:
        raise EnvironmentFault(
            f"the graph of the model cannot be written: {error}",
            where=deployment.directory,
            remedy=f"Make room for temporary files, name another directory in TMPDIR, or add @{PACKED}=always",
        ) from error


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
