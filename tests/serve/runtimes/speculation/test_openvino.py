"""Guesses with real models: packed ones in a loop of ours, others in GenAI's."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from export.formats.openvino import MODEL_XML, write_openvino
from serve.bench.benchmark import run_benchmark
from serve.bench.workload import make_workload
from serve.runtimes.deployment import find_deployment
from serve.runtimes.openvino import load_batching_pipeline
from serve.runtimes.runtime import Decoding, RunOptions, Runtime, load_runtime
from shearling.errors import ArtefactMissing, UsageError
from shearling.kernel.openvino_extension import compile_ir
from shearling.target import parse_target
from tests.support.exported_files import stored_as
from tests.support.packed_decoders import SHAPE, seeded_decoder, write_packed
from tests.support.tiny_models import tiny_tokenizer

OPTIONS = RunOptions(threads=1)
NEW_TOKENS = 60
LEVEL = 0.1
"""Logits that rounding may set apart: three rows and more are read in 8 bits."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`packed` and `stock` of one model, and a smaller packed `draft`."""
    root = tmp_path_factory.mktemp("speculation")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao warns while optimum imports it
        model = seeded_decoder(LlamaForCausalLM, LlamaConfig(**SHAPE))
        write_packed(root / "packed", model)
        write_openvino(model, tiny_tokenizer(), root / "stock", stored_as("int8"), sparsity={})
        write_packed(root / "draft", seeded_decoder(LlamaForCausalLM, LlamaConfig(**{**SHAPE, "num_hidden_layers": 1})))
        other = LlamaConfig(**{**SHAPE, "num_hidden_layers": 1, "vocab_size": SHAPE["vocab_size"] + 8})
        write_openvino(
            seeded_decoder(LlamaForCausalLM, other), tiny_tokenizer(), root / "other", stored_as("int8"), sparsity={}
        )
    return root


def load(models: Path, settings: str, options: RunOptions = OPTIONS) -> Runtime:
    return load_runtime(find_deployment(parse_target(f"{models / settings}")), options)


def generate(runtime: Runtime, prompt: list[int], new_tokens: int = NEW_TOKENS) -> list[int]:
    return list(runtime.generate([prompt], Decoding(new_tokens)).token_ids)


PROMPT = [5, 9, 5, 9, 7, 5, 9, 5]


def test_one_guess_changes_no_token(models):
    """Two rows are read as one is, bit for bit."""
    assert generate(load(models, "packed@PROMPT_LOOKUP=1"), PROMPT) == generate(load(models, "packed"), PROMPT)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *(("packed", settings) for settings in ("PROMPT_LOOKUP=6", "DRAFT={}/draft", "DRAFT={}/packed,GUESSES=6")),
        *(
            (name, settings)
            for name in ("packed@ATTENTION_BACKEND=PA", "stock")
            for settings in ("PROMPT_LOOKUP=6", "DRAFT={}/stock,GUESSES=6")
        ),
    ],
)
def test_every_token_is_the_likeliest_or_level_with_it(models, name, settings):
    at, own = "," if "@" in name else "@", name == "packed"
    # fp32 keeps OpenVINO's attention; its own default may be bf16.
    options = OPTIONS if own else RunOptions(threads=1, precision="fp32")
    runtime = load(models, f"{name}{at}{settings.format(models)}", options)
    assert "guesses" in runtime.facts.settings["speculation"]
    assert ("serve.runtimes.speculation" in runtime.facts.timing_source) == own
    for _ in range(2):  # a second text starts anew
        text = [*PROMPT, *generate(runtime, PROMPT)]
        assert len(text) == len(PROMPT) + NEW_TOKENS
        logits = score(models / "packed", text)
        for place in range(len(PROMPT), len(text)):
            assert logits[place - 1].max() - logits[place - 1][text[place]] < LEVEL


def score(directory: Path, text: list[int]) -> np.ndarray:
    compiled = compile_ir(directory / MODEL_XML, properties={"INFERENCE_PRECISION_HINT": "f32"})
    length = len(text)
    (logits,) = compiled(
        {
            "input_ids": np.array([text]),
            "attention_mask": np.ones((1, length), np.int64),
            "position_ids": np.arange(length)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
    ).values()
    return logits[0]


def test_text_is_told_while_it_is_made(models):
    runtime, pieces = load(models, "packed@PROMPT_LOOKUP=4"), []
    made = runtime.generate([PROMPT], Decoding(NEW_TOKENS, on_text=pieces.append))
    assert len(pieces) > 1
    assert "".join(pieces) == runtime.decode(made.token_ids)


def test_it_is_measured_beside_others(models):
    benchmark = run_benchmark(
        [parse_target(f"{models}/packed{settings}") for settings in ("", "@PROMPT_LOOKUP=4")],
        options=OPTIONS,
        workload=make_workload(8, 12, repeats=2, warmup=1),
    )
    assert [len(sample.gaps_s) for sample in benchmark.samples] == [11] * len(benchmark.samples)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ("PROMPT_LOOKUP=0", "not a number of guesses"),
        ("PROMPT_LOOKUP=x", "not a number of guesses"),
        ("PROMPT_LOOKUP=65", "not a number of guesses"),
        ("PROMPT_LOOKUP=4,GUESSES=2", "goes with neither"),
        ("PROMPT_LOOKUP=4,DRAFT=somewhere", "goes with neither"),
        ("GUESSES=4", "says of whom none"),
        ("DRAFT={}/draft,GUESSES=0", "not a number of guesses"),
        ("DRAFT={}/other", "has 408 tokens, the model 400"),
    ],
)
def test_what_is_refused(models, settings, match):
    with pytest.raises(UsageError, match=match):
        load(models, f"packed@{settings.format(models)}")


@pytest.mark.parametrize("name", ["stock@", "packed@ATTENTION_BACKEND=PA,"])
def test_a_packed_draft_that_genai_would_read(models, name):
    with pytest.raises(UsageError, match="before it can be given the operators"):
        load(models, f"{name}DRAFT={models}/draft")


def test_a_draft_that_is_not_there(models):
    with pytest.raises(ArtefactMissing, match="no such directory"):
        load(models, "packed@DRAFT=nowhere")


@pytest.mark.parametrize("name", ["packed", "stock"])
def test_two_texts_at_once_are_refused(models, name):
    with pytest.raises(UsageError, match="one prompt at a time"):
        load(models, f"{name}@PROMPT_LOOKUP=4").generate([PROMPT, PROMPT], Decoding(4))
    with pytest.raises(UsageError, match="one text at a time"):
        load_batching_pipeline(find_deployment(parse_target(f"{models / name}@PROMPT_LOOKUP=4")), OPTIONS)
