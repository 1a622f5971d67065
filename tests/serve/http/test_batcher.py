"""The model's side, on a real pipeline in this process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import hypothesis
import openvino
import openvino_tokenizers
import pytest
from hypothesis import strategies as st
from openvino_genai import GenerationConfig

from serve.http.batcher import STREAM_S, Batcher
from serve.http.limits import Limits
from serve.http.protocol import Event, Sampling, TextJob, Turn
from serve.runtimes.deployment import find_deployment
from serve.runtimes.openvino import load_batching_pipeline
from serve.runtimes.runtime import RunOptions
from shearling.target import Target
from tests.support.http_jobs import GREEDY
from tests.support.tiny_models import SPACED, tidying_tokenizer, tiny_tokenizer, word_piece_tokenizer

MakeJob = Callable[..., TextJob]


@pytest.fixture(scope="module")
def pipeline(export: Path):
    deployment = find_deployment(Target(export).only("openvino"))
    return load_batching_pipeline(deployment, RunOptions(precision="fp32", threads=1))[0], deployment


@pytest.fixture
def batcher(pipeline) -> Batcher:
    return Batcher(*pipeline, Limits(concurrency=2))


@pytest.fixture(scope="module")
def make_job() -> MakeJob:
    ids = itertools.count(1)

    def make(
        prompt: str = "Area man", tokens: int = 40, *, streamed: bool = True, stops: tuple[str, ...] = ()
    ) -> TextJob:
        return TextJob(
            id=next(ids), prompt=prompt, max_new_tokens=tokens, sampling=GREEDY, stops=stops, streamed=streamed
        )

    return make


def run(batcher: Batcher) -> list[Event]:
    events = []
    while batcher.busy:
        events += batcher.step()
    return events


def test_texts_wait_for_a_place_and_come_in_turn(batcher: Batcher, make_job: MakeJob) -> None:
    jobs = [make_job(tokens=5) for _ in range(5)]
    assert {batcher.add(job).kind for job in jobs} == {"accepted"}
    at_once, running = 0, set()
    order = []
    for event in run(batcher):
        if event.kind == "started":
            running.add(event.job)
            order.append(event.job)
        if event.is_last:
            running.remove(event.job)
        at_once = max(at_once, len(running))
    assert at_once == 2
    assert order == [job.id for job in jobs]


def test_a_template_says_why_it_refuses_messages(batcher: Batcher, make_job: MakeJob) -> None:
    tokenizer = batcher._tokenizer
    template = tokenizer.chat_template
    chat = make_job().model_copy(update={"prompt": (Turn(role="user", content="Hello"),)})
    try:
        for failing, reason in (
            ("{{ raise_exception('the system speaks first') }}", "the system speaks first"),
            ("{% for %}", "Expected variable names"),
        ):
            tokenizer.set_chat_template(failing)
            told = batcher.add(chat)
            assert told.kind == "refused"
            assert f"refuses these messages: {reason}" in told.message
    finally:
        tokenizer.set_chat_template(template)


def test_a_cancelled_text_is_worked_on_no_more(batcher: Batcher, make_job: MakeJob, pipeline) -> None:
    flying, waiting = [make_job(tokens=200) for _ in range(2)], make_job(tokens=200)
    for job in (*flying, waiting):
        batcher.add(job)
    list(batcher.step())
    for job in (*flying, waiting):
        batcher.cancel(job.id)
        batcher.cancel(job.id)
    assert len(run(batcher)) == 0
    assert not pipeline[0].has_non_finished_requests()
    batcher.add(last := make_job(tokens=3))
    first, *_, end = run(batcher)
    assert (first.kind, end.kind, end.job, end.new_tokens) == ("started", "finished", last.id, 3)
    batcher.cancel(last.id)
    assert not batcher.busy


@pytest.mark.parametrize("streamed", [False, True])
def test_tokens_of_a_cancelled_text_count(batcher: Batcher, make_job: MakeJob, streamed: bool) -> None:
    batcher.add(job := make_job(tokens=200, streamed=streamed))
    for _ in range(6):
        list(batcher.step())
    batcher.cancel(job.id)
    assert batcher.new_tokens == 6
    batcher.add(make_job(tokens=3, streamed=streamed))
    run(batcher)
    assert batcher.new_tokens == 9


def test_a_stop_string_ends_the_work_too(batcher: Batcher, make_job: MakeJob, pipeline) -> None:
    batcher.add(make_job(tokens=200, streamed=False))
    (*_, whole) = run(batcher)
    stop = whole.text[10:13]
    batcher.add(make_job(tokens=200, stops=(stop,)))
    events = run(batcher)
    assert "".join(event.text for event in events) == whole.text[: whole.text.index(stop)]
    assert (events[-1].reason, whole.reason, whole.new_tokens) == ("stop", "length", 200)
    assert events[-1].new_tokens < 50
    assert not pipeline[0].has_non_finished_requests()


class Saying:
    """Decodes to the same tokens, whatever it is asked."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens

    def decode(self, ids: Sequence[int], config: GenerationConfig) -> Generator[list[int], None, None]:
        yield from ([token] for token in self._tokens)


@pytest.mark.parametrize("ignore_eos", [True, False])
@pytest.mark.parametrize("tokenizer_file", [True, False])
def test_a_stop_string_that_is_a_special_token_ends_the_text(
    ignore_eos: bool, tokenizer_file: bool, pipeline, make_job: MakeJob, tmp_path: Path
) -> None:
    batching, deployment = pipeline
    if not tokenizer_file:
        # Then OpenVINO's own tokenizer decodes.
        deployment = deployment.model_copy(update={"directory": tmp_path})
    tokenizer = tiny_tokenizer()
    said = [*tokenizer.encode(" yes"), tokenizer.pad_token_id, *tokenizer.encode(" no")]
    sampling = GREEDY.model_copy(update={"ignore_eos": ignore_eos})
    texts = []
    for stops in ((), (tokenizer.pad_token,), (" ", tokenizer.pad_token)):
        job = make_job(tokens=len(said), stops=stops).model_copy(update={"sampling": sampling})
        batcher = Batcher(batching, deployment, Limits(), lone=Saying(said))
        batcher.add(job)
        events = run(batcher)
        texts.append(("".join(event.text for event in events), events[-1].reason))
    assert texts == [(" yes no", "length"), (" yes", "stop"), ("", "stop")]


@pytest.mark.parametrize("tokenizer_file", [True, False])
def test_a_stop_string_that_the_tokenizer_does_not_know_is_no_special_token(
    tokenizer_file: bool, copy_of: Callable[[str], Path], make_job: MakeJob
) -> None:
    """It is the token of what is unknown, which no text shows either."""
    tokenizer = word_piece_tokenizer()
    directory = copy_of("openvino")
    parts = openvino_tokenizers.convert_tokenizer(tokenizer, with_detokenizer=True)
    for part, name in zip(parts, ("openvino_tokenizer.xml", "openvino_detokenizer.xml"), strict=True):
        openvino.save_model(part, directory / name)
    tokenizer.save_pretrained(str(directory))
    if not tokenizer_file:
        (directory / "tokenizer.json").unlink()
    deployment = find_deployment(Target(directory))
    batching = load_batching_pipeline(deployment, RunOptions(precision="fp32", threads=1))[0]
    known = tokenizer.encode("the", add_special_tokens=False)
    said = [*known, tokenizer.unk_token_id, *known]
    texts = []
    for stop in ("\N{SNOWMAN}", tokenizer.unk_token):
        batcher = Batcher(batching, deployment, Limits(), lone=Saying(said))
        batcher.add(make_job("the", tokens=len(said), stops=(stop,)))
        events = run(batcher)
        texts.append(("".join(event.text for event in events), events[-1].reason))
    assert texts == [(" the the", "length"), (" the", "stop")]


def test_a_stream_has_its_first_piece_at_once_and_no_more_than_can_be_seen(pipeline, make_job: MakeJob) -> None:
    told = []
    for step_s in (2 * STREAM_S, STREAM_S / 4):
        now_s = itertools.count(0.0, step_s)
        one = Batcher(*pipeline, Limits(), clock=lambda now_s=now_s: next(now_s))
        one.add(make_job(tokens=120))
        told.append([event for event in run(one) if event.kind != "started"])
    all_of_them, few = told
    assert few[0] == all_of_them[0].model_copy(update={"job": few[0].job})
    # The first readable piece does not wait for the others.
    assert all(later.new_tokens >= event.new_tokens + 4 for event, later in itertools.pairwise(few[1:-1]))
    assert len(few) < len(all_of_them) / 2
    assert "".join(event.text for event in few) == "".join(event.text for event in all_of_them)


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    sampling=st.builds(
        Sampling,
        temperature=st.floats(0, 2) | st.sampled_from([0.0, 1e-300, 0.009, 0.01, 2.0]),
        top_p=st.floats(0, 1) | st.sampled_from([0.0, 5e-324, 1e-40, 1.0]),
        top_k=st.none() | st.integers(1, 2**31 - 1),
        seed=st.integers(0, 2**32 - 1),
        repeatable=st.booleans(),
        frequency_penalty=st.floats(-2, 2),
        presence_penalty=st.floats(-2, 2),
        ignore_eos=st.booleans(),
    )
)
def test_no_sampling_that_a_body_may_ask_for_stops_the_process(pipeline, make_job: MakeJob, sampling: Sampling) -> None:
    one = Batcher(*pipeline, Limits())
    job = make_job(tokens=4).model_copy(update={"sampling": sampling})
    assert one.add(job).kind == "accepted"
    *_, end = run(one)
    assert (end.kind, end.reason) in {("finished", "length"), ("finished", "stop")}


def test_what_a_library_objects_to_is_refused(batcher: Batcher, make_job: MakeJob) -> None:
    impossible = GREEDY.model_copy(update={"temperature": 1.0, "top_p": 7.0})
    told = batcher.add(make_job().model_copy(update={"sampling": impossible}))
    assert (told.kind, batcher.busy) == ("refused", False)
    assert "top_p" in told.message


def test_every_way_to_ask_makes_the_same_text(batcher: Batcher, make_job: MakeJob) -> None:
    texts = set()
    for options in ({"streamed": False}, {"streamed": True}, {"streamed": False, "stops": ("never said",)}):
        batcher.add(make_job(tokens=120, **options))
        texts.add("".join(event.text for event in run(batcher)))
    assert len(texts) == 1


def test_every_way_to_ask_keeps_the_spaces_of_a_tokenizer_that_would_tidy_them_up(
    copy_of: Callable[[str], Path], make_job: MakeJob
) -> None:
    """As that of Llama 3, of whose tokens a whole text and a stream must not make different code."""
    tokenizer = tidying_tokenizer()
    directory = copy_of("openvino")
    # As earlier exports have it: the detokenizer of the pipeline tidies up, too.
    parts = openvino_tokenizers.convert_tokenizer(tokenizer, with_detokenizer=True, clean_up_tokenization_spaces=True)
    for part, name in zip(parts, ("openvino_tokenizer.xml", "openvino_detokenizer.xml"), strict=True):
        openvino.save_model(part, directory / name)
    tokenizer.save_pretrained(str(directory))
    deployment = find_deployment(Target(directory))
    batching = load_batching_pipeline(deployment, RunOptions(precision="fp32", threads=1))[0]
    said = tokenizer.encode(SPACED)
    texts = []
    for options in ({"streamed": False}, {"streamed": True}, {"streamed": False, "stops": ("never said",)}):
        batcher = Batcher(batching, deployment, Limits(), lone=Saying(said))
        batcher.add(make_job(tokens=len(said), **options))
        texts.append("".join(event.text for event in run(batcher)))
    assert texts == [SPACED, SPACED, SPACED]


class WithoutFirstSpace:
    """Decodes as the tokenizers of Llama 2 and Mistral do."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(f" w{token}" for token in token_ids).removeprefix(" ")


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("stops", [(), ("never",)])
def test_a_completion_begins_with_its_space_and_an_answer_of_a_chat_does_not(
    batcher: Batcher, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, streamed: bool, stops: tuple[str, ...]
) -> None:
    monkeypatch.setattr(batcher, "_decoder", WithoutFirstSpace())
    job = make_job(tokens=3, streamed=streamed, stops=stops)
    chat = make_job(tokens=3, streamed=streamed, stops=stops).model_copy(
        update={"prompt": (Turn(role="user", content="Area man"),)}
    )
    for asked, beginning in ((job, " w"), (chat, "w")):
        batcher.add(asked)
        text = "".join(event.text or "" for event in run(batcher))
        assert text.startswith(beginning)
        assert text.count("w") == 3


def test_the_tokenizer_of_the_export_serves_where_there_is_no_other(
    copy_of: Callable[[str], Path], make_job: MakeJob, batcher: Batcher
) -> None:
    directory = copy_of("openvino")
    (directory / "tokenizer.json").unlink()
    deployment = find_deployment(Target(directory))
    alone = Batcher(
        load_batching_pipeline(deployment, RunOptions(precision="fp32", threads=1))[0], deployment, Limits()
    )
    texts = []
    for one in (batcher, alone):
        one.add(make_job(tokens=120))
        texts.append("".join(event.text for event in run(one)))
    assert texts[0] == texts[1]
