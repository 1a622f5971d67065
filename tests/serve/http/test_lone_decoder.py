"""A text that nothing runs beside, on the pipeline with attention in the layers, beside the one of many requests."""

from __future__ import annotations

import itertools
import threading
import warnings
from pathlib import Path

import hypothesis
import openvino_genai
import pytest
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from serve.http.batcher import Batcher
from serve.http.limits import Limits
from serve.http.lone_decoder import LoneDecoder
from serve.http.protocol import Event, Sampling, TextJob
from serve.runtimes.deployment import Deployment, find_deployment
from serve.runtimes.openvino import load_batching_pipeline, load_lone_pipeline
from serve.runtimes.openvino_decoding import GuessingDecoding, greedy, load_guessing
from serve.runtimes.runtime import RunOptions
from shearling.errors import UsageError
from shearling.target import Target
from tests.support.http_jobs import GREEDY
from tests.support.http_server import COMPLETIONS, serving
from tests.support.packed_decoders import SHAPE, seeded_decoder, write_packed

OPTIONS = RunOptions(threads=1)
SAMPLED = GREEDY.model_copy(update={"temperature": 1.0})
PLAIN = {"temperature": 0, "ignore_eos": True}
IDS = itertools.count(1)


class CountingDecoder(LoneDecoder):
    """Counts the texts that it is given."""

    texts = 0

    def decode(self, ids, config):
        self.texts += 1
        return super().decode(ids, config)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao warns while optimum imports it
        xml = write_packed(
            tmp_path_factory.mktemp("lone") / "model", seeded_decoder(LlamaForCausalLM, LlamaConfig(**SHAPE))
        )
    return find_deployment(Target(xml.parent))


@pytest.fixture(scope="module")
def batching(deployment: Deployment) -> openvino_genai.ContinuousBatchingPipeline:
    return load_batching_pipeline(deployment, OPTIONS, with_tokenizer=True)[0]


@pytest.fixture(scope="module")
def lone_pipeline(deployment: Deployment) -> openvino_genai.LLMPipeline:
    pipeline = load_lone_pipeline(deployment, OPTIONS)
    assert pipeline is not None
    return pipeline


@pytest.fixture(scope="module")
def guessing(deployment: Deployment) -> GuessingDecoding:
    """One guess, because two rows are read as one is, bit for bit."""
    return load_guessing(deployment.model_copy(update={"properties": {"PROMPT_LOOKUP": "1"}}), OPTIONS)


@pytest.fixture(params=[False, True], ids=["pipeline", "guesses"])
def lone(request, lone_pipeline: openvino_genai.LLMPipeline, guessing: GuessingDecoding) -> CountingDecoder:
    return CountingDecoder(lone_pipeline, guessing if request.param else None)


@pytest.fixture
def batcher(batching, deployment: Deployment, lone: CountingDecoder) -> Batcher:
    return Batcher(batching, deployment, Limits(concurrency=3), lone=lone)


@pytest.fixture
def batched(batching, deployment: Deployment) -> Batcher:
    return Batcher(batching, deployment, Limits(concurrency=3))


def threads_left() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "lone-decoder"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert threads_left() == []


def make_job(prompt: str = "Area man", tokens: int = 40, *, sampling: Sampling = GREEDY, **rest) -> TextJob:
    return TextJob(
        **{
            "id": next(IDS),
            "prompt": prompt,
            "max_new_tokens": tokens,
            "sampling": sampling,
            "stops": (),
            "streamed": True,
            **rest,
        }
    )


def run(batcher: Batcher) -> list[Event]:
    events = []
    while batcher.busy:
        events += batcher.step()
    return events


def told(batcher: Batcher, job: TextJob) -> tuple[str, int, str | None]:
    """Text, tokens and reason of a job that runs by itself."""
    batcher.add(job)
    events = run(batcher)
    return "".join(event.text for event in events), events[-1].new_tokens, events[-1].reason


@pytest.mark.parametrize("rest", [{}, {"streamed": False}, {"stops": ("a",)}, {"stops": ("never said",)}])
@pytest.mark.parametrize("ignore_eos", [True, False])
def test_it_says_what_the_batch_says(
    batcher: Batcher, batched: Batcher, lone: CountingDecoder, rest: dict, ignore_eos: bool
) -> None:
    sampling = GREEDY.model_copy(update={"ignore_eos": ignore_eos})
    for prompt in ("Area man", "Local woman wins"):
        assert told(batcher, make_job(prompt, 60, sampling=sampling, **rest)) == told(
            batched, make_job(prompt, 60, sampling=sampling, **rest)
        )
    assert lone.texts == 2


def test_an_end_token_ends_it(lone: CountingDecoder, batching, deployment: Deployment) -> None:
    """The first token that the model makes is declared to end texts: it counts, and is not in the text."""
    first = next(tokens := lone.decode([5, 6, 7], greedy(4, frozenset())))[0]
    tokens.close()
    ends = deployment.model_copy(update={"end_ids": (first,)})
    job = make_job(prompt=(5, 6, 7), sampling=GREEDY.model_copy(update={"ignore_eos": False}))
    for one in (lone, None):
        assert told(Batcher(batching, ends, Limits(), lone=one), job) == ("", 1, "stop")


def test_what_comes_meanwhile_is_batched(batcher: Batcher, batched: Batcher, lone: CountingDecoder) -> None:
    jobs = [make_job(prompt, 30) for prompt in ("Area man", "Local woman", "Nation")]
    expected = [told(batched, make_job(job.prompt, 30)) for job in jobs]
    batcher.add(jobs[0])
    events = [*batcher.step(), *batcher.step()]
    for job in jobs[1:]:
        batcher.add(job)
    first = list(batcher.step())
    assert {event.job for event in first if event.kind == "started"} == {job.id for job in jobs[1:]}
    events += first + run(batcher)
    texts = ["".join(event.text for event in events if event.job == job.id) for job in jobs]
    assert texts == [text for text, _, _ in expected]
    assert lone.texts == 1
    told(batcher, make_job())
    assert lone.texts == 2


def test_texts_that_come_together_are_batched_together(batcher: Batcher, lone: CountingDecoder) -> None:
    for _ in range(2):
        batcher.add(make_job(tokens=3))
    assert [event.kind for event in run(batcher)].count("finished") == 2
    assert lone.texts == 0


def test_a_seed_that_is_to_give_the_same_text_again_stays_with_the_batch(
    batcher: Batcher, batched: Batcher, lone: CountingDecoder
) -> None:
    seeded = SAMPLED.model_copy(update={"repeatable": True, "seed": 7})
    assert told(batcher, make_job(sampling=seeded)) == told(batched, make_job(sampling=seeded))
    assert lone.texts == 0
    told(batcher, make_job(sampling=SAMPLED))
    told(batcher, make_job(sampling=seeded.model_copy(update={"temperature": 0.0})))
    assert lone.texts == 2


def test_a_cancelled_text_ends_at_once(batcher: Batcher, lone: CountingDecoder) -> None:
    for steps in (1, 3):
        batcher.add(job := make_job(tokens=200))
        for _ in range(steps):
            list(batcher.step())
        batcher.cancel(job.id)
        assert not batcher.busy
        assert threads_left() == []
    assert told(batcher, make_job(tokens=3))[1:] == (3, "length")
    assert lone.texts == 3


def test_what_the_pipeline_raises_is_raised_where_tokens_are_asked_for(
    lone_pipeline: openvino_genai.LLMPipeline,
) -> None:
    with pytest.raises(RuntimeError):
        next(LoneDecoder(lone_pipeline).decode([], greedy(3, frozenset())))


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    sampling=st.builds(
        Sampling,
        temperature=st.floats(0, 2) | st.sampled_from([0.0, 0.009, 0.01, 2.0]),
        top_p=st.floats(0, 1) | st.sampled_from([0.0, 1e-40, 1.0]),
        top_k=st.none() | st.integers(1, 2**31 - 1),
        seed=st.integers(0, 2**32 - 1),
        repeatable=st.just(False),
        frequency_penalty=st.floats(-2, 2),
        presence_penalty=st.floats(-2, 2),
        ignore_eos=st.booleans(),
    )
)
def test_no_sampling_that_a_body_may_ask_for_stops_it(
    batching, deployment: Deployment, lone_pipeline: openvino_genai.LLMPipeline, sampling: Sampling
) -> None:
    one = Batcher(batching, deployment, Limits(), lone=LoneDecoder(lone_pipeline))
    _, tokens, reason = told(one, make_job(tokens=4, sampling=sampling))
    assert (tokens, reason) == (4, "length") or (tokens <= 4 and reason == "stop")


def test_a_server_says_that_it_has_one_and_answers_with_it(deployment: Deployment, batched: Batcher) -> None:
    text, tokens, _ = told(batched, make_job(tokens=30))
    with serving(f"packed={deployment.directory}", options=("--precision", "default")) as server:
        assert "packed: attention in the layers for a text that nothing runs beside" in server.log
        answer = server.post(COMPLETIONS, {"model": "packed", "prompt": "Area man", "max_tokens": 30, **PLAIN}).json()
    assert (answer["choices"][0]["text"], answer["usage"]["completion_tokens"]) == (text, tokens)


def test_a_server_makes_guesses_for_a_text_that_nothing_runs_beside(deployment: Deployment, batched: Batcher) -> None:
    expected = [told(batched, make_job(prompt, 30))[0] for prompt in ("Area man", "Local woman")]
    target = f"packed={deployment.directory}@PROMPT_LOOKUP=1"
    with serving(target, options=("--precision", "default")) as server:
        body = {"model": "packed", "max_tokens": 30, **PLAIN}
        alone = server.post(COMPLETIONS, {**body, "prompt": "Area man"}).json()
        together = server.post(COMPLETIONS, {**body, "prompt": ["Area man", "Local woman"]}).json()
    assert [choice["text"] for choice in alone["choices"]] == expected[:1]
    assert [choice["text"] for choice in together["choices"]] == expected


def test_guesses_for_what_is_not_packed_are_refused(export: Path) -> None:
    stock = find_deployment(Target(export).only("openvino"))
    with pytest.raises(UsageError, match="for packed decoders"):
        load_guessing(stock.model_copy(update={"properties": {"PROMPT_LOOKUP": "4"}}), OPTIONS)


def test_a_model_of_openvinos_own_attention_has_none(export: Path) -> None:
    assert load_lone_pipeline(find_deployment(Target(export).only("openvino")), OPTIONS) is None
