"""Greedy decoding in OpenVINO: by GenAI's pipeline, or by a loop of ours that reads guesses with what they follow."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from serve.runtimes.deployment import Deployment, find_deployment
from serve.runtimes.openvino_loading import StockIr, pipeline_directory, prepare
from serve.runtimes.runtime import Decoding, Generation, RunOptions, RuntimeFacts, only_row
from serve.runtimes.speculation.decoding import decode_with_guesses
from serve.runtimes.speculation.guesses import LONGEST, DraftModel, Guesser, PromptLookup
from serve.runtimes.speculation.rewindable_decoder import RewindableDecoder
from serve.runtimes.speculation.settings import Speculation, read_speculation
from serve.visitor.genai import prompt_of, read_generation
from shearling.errors import ShearlingError, UsageError
from shearling.kernel.loading.genai_stream import stream_text
from shearling.kernel.loading.packed_model import LoadedIr
from shearling.kernel.runtime_refusal import refusals
from shearling.target import Target

if TYPE_CHECKING:
    import openvino_genai

OWN_CLOCK = "monotonic clock after each reading of serve.runtimes.speculation"


@dataclass(frozen=True)
class PipelineDecoding:
    """GenAI's pipeline; timings are its own perf_metrics.

    Attributes:
        pipeline: nobody else uses it meanwhile.
        deployment: what it was loaded from.
        guesses: that GenAI makes for one reading; None where it makes none.
    """

    pipeline: openvino_genai.LLMPipeline
    deployment: Deployment
    guesses: int | None = None

    @property
    def tokenizer(self) -> openvino_genai.Tokenizer:
        """Of the pipeline."""
        return self.pipeline.get_tokenizer()

    def generate(self, rows: Sequence[Sequence[int]], work: Decoding) -> Generation:
        """See `Runtime.generate`."""
        where = self.deployment.directory
        config = greedy(work.max_new_tokens, work.end_ids)
        if self.guesses is not None:
            rows = [only_row(rows, deployment=self.deployment)]
            config.num_assistant_tokens, config.max_ngram_size = self.guesses, LONGEST

        def make(*streamer: Callable[[str], Any]) -> Any:
            with refusals(where):
                return self.pipeline.generate(prompt, config, *streamer)

        prompt, called_s = prompt_of(rows), time.perf_counter()
        result = make() if work.on_text is None else stream_text(make, work.on_text)
        read = read_generation(result, len(rows), called_s)
        tokens, gaps_s = read["token_ids"], tuple(read["gaps_s"])
        if not work.end_ids and (len(tokens) != work.max_new_tokens or len(gaps_s) != work.max_new_tokens - 1):
            raise ShearlingError(
                f"OpenVINO made {len(tokens)} tokens and {len(gaps_s)} gaps, {work.max_new_tokens} were asked for",
                where=where,
            )
        if tokens and tokens[-1] in work.end_ids:
            tokens.pop()
        return Generation(
            token_ids=tuple(tokens),
            started_s=read["started_s"],
            ttft_s=read["ttft_s"],
            gaps_s=gaps_s,
            total_s=read["total_s"],
            other_rows=tuple(map(tuple, read["other_rows"])),
        )


@dataclass(frozen=True)
class GuessingDecoding:
    """A packed decoder that reads guesses together.

    Attributes:
        model: with attention in its layers.
        new_guesser: makes one for each text.
        most: guesses for one reading.
        tokenizer: of the export.
        deployment: what it was loaded from.
    """

    model: RewindableDecoder
    new_guesser: Callable[[], Guesser]
    most: int
    tokenizer: openvino_genai.Tokenizer
    deployment: Deployment

    def generate(self, rows: Sequence[Sequence[int]], work: Decoding) -> Generation:
        """See `Runtime.generate`."""
        row = only_row(rows, deployment=self.deployment)
        with refusals(self.deployment.directory):
            return decode_with_guesses(
                self.model, row, self.new_guesser(), most=self.most, work=work, decoder=self.tokenizer
            )


def open_decoding(
    deployment: Deployment, options: RunOptions
) -> tuple[RuntimeFacts, PipelineDecoding | GuessingDecoding]:
    """Load a deployment in the way that makes one text fastest.

    Raises:
        ShearlingError: see `serve.runtimes.openvino.OpenVINORuntime`.
        RuntimeError: OpenVINO cannot load it.
    """
    speculation = read_speculation(deployment.properties, label=deployment.label)
    if speculation is not None:
        return _open_speculation(deployment, options, speculation)
    facts, loaded = prepare(deployment, options)
    return facts, PipelineDecoding(_open_pipeline(deployment.directory, options.device, loaded), deployment)


def load_guessing(deployment: Deployment, options: RunOptions) -> GuessingDecoding:
    """What a deployment asks for, where no pipeline of GenAI can take its place.

    Raises:
        UsageError: it is not packed, or keeps OpenVINO's attention.
        ShearlingError: see `serve.runtimes.openvino.OpenVINORuntime`.
    """
    with refusals(deployment.directory):
        _, decoding = open_decoding(deployment, options)
    if isinstance(decoding, PipelineDecoding):
        raise UsageError(
            "guesses are made here for packed decoders with attention in their layers",
            where=deployment.label,
            remedy="Leave them out, or use: python -m serve generate",
        )
    return decoding


def _open_pipeline(directory: Path, device: str, loaded: LoadedIr | StockIr) -> openvino_genai.LLMPipeline:
    import openvino_genai

    if isinstance(loaded, LoadedIr):
        return loaded.open_pipeline(device)
    return openvino_genai.LLMPipeline(directory, device, **loaded.properties)


def _open_speculation(
    deployment: Deployment, options: RunOptions, speculation: Speculation
) -> tuple[RuntimeFacts, PipelineDecoding | GuessingDecoding]:
    draft = None if speculation.draft is None else _find_draft(speculation.draft, deployment)
    facts, loaded = prepare(deployment, options)
    drafted = None if draft is None else prepare(draft, options)[1]
    decoding: PipelineDecoding | GuessingDecoding
    if _rewinds(loaded) and (draft is None or _rewinds(drafted)):
        small = drafted if _rewinds(drafted) else None
        decoding = _open_guessing(deployment, options.device, speculation, loaded=loaded, draft=small)
        facts = facts.model_copy(update={"timing_source": OWN_CLOCK})
    else:
        facts, decoding = _open_genai_speculation(deployment, options, speculation, draft=draft)
    facts.settings["speculation"] = speculation.summary
    return facts, decoding


def _rewinds(loaded: LoadedIr | StockIr | None) -> TypeGuard[LoadedIr]:
    return isinstance(loaded, LoadedIr) and loaded.attention is None


def _open_guessing(
    deployment: Deployment, device: str, speculation: Speculation, *, loaded: LoadedIr, draft: LoadedIr | None
) -> GuessingDecoding:
    import openvino_genai

    model = RewindableDecoder(loaded, device, most_behind=speculation.most + 1)
    small = None if draft is None else RewindableDecoder(draft, device, most_behind=1)
    return GuessingDecoding(
        model,
        PromptLookup if small is None else lambda: DraftModel(small),
        speculation.most,
        openvino_genai.Tokenizer(deployment.directory),
        deployment,
    )


def _open_genai_speculation(
    deployment: Deployment, options: RunOptions, speculation: Speculation, *, draft: Deployment | None
) -> tuple[RuntimeFacts, PipelineDecoding]:
    """GenAI's own, on continuous batching, for what is not packed, or keeps OpenVINO's attention."""
    import openvino_genai

    facts, loaded = prepare(deployment, options, batching=True)
    properties: dict[str, Any] = dict(loaded.properties)
    if draft is None:
        properties["prompt_lookup"] = True
    else:
        _, drafted = prepare(draft, options, batching=True)
        if isinstance(drafted, LoadedIr):
            raise UsageError(
                "OpenVINO GenAI reads a draft before it can be given the operators of a packed one",
                where=draft.label,
                remedy="Give a draft that was exported without --sparse-kernel, or a model that is packed as well",
            )
        properties["draft_model"] = openvino_genai.draft_model(draft.directory, options.device, **drafted.properties)
    with pipeline_directory(deployment, loaded) as directory:
        pipeline = openvino_genai.LLMPipeline(directory, options.device, **properties)
    return facts, PipelineDecoding(pipeline, deployment, guesses=speculation.most)


def _find_draft(path: Path, deployment: Deployment) -> Deployment:
    draft = find_deployment(Target(path, deployment.format))
    if draft.vocabulary != deployment.vocabulary:
        raise UsageError(
            f"the draft {path} has {draft.vocabulary} tokens, the model {deployment.vocabulary}",
            where=deployment.label,
            remedy="Give a smaller model of the same tokenizer",
        )
    return draft


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
