"""What OpenAI's own client gets from a stock and from a sparse export."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from serve.runtimes.runtime import Decoding, Runtime
from tests.support.http_server import HttpServer

PROMPT = "Area man wins award for the best"
MESSAGES = [{"role": "user", "content": PROMPT}]


@pytest.fixture(scope="module")
def client(server: HttpServer) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


@pytest.fixture(params=["tiny", "tiny/sparse"])
def model(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def oracle(request: pytest.FixtureRequest, model: str) -> Runtime:
    """`serve generate` of the same model."""
    return request.getfixturevalue("runtime" if model == "tiny" else "sparse_runtime")


def spoken(runtime: Runtime, prompt: str, tokens: int, *, chat: bool) -> str:
    ids = runtime.encode(prompt, chat=chat)
    return runtime.decode(runtime.generate([ids], Decoding(tokens, frozenset({2}))).token_ids)


def test_a_chat_says_what_the_command_says(client: openai.OpenAI, model: str, oracle: Runtime) -> None:
    answer = client.chat.completions.create(model=model, messages=MESSAGES, max_completion_tokens=24, temperature=0)
    choice = answer.choices[0]
    assert choice.message.content == spoken(oracle, PROMPT, 24, chat=True)
    assert (choice.message.role, choice.finish_reason, answer.model) == ("assistant", "length", model)
    prompt = len(oracle.encode(PROMPT, chat=True))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, 24)
    assert answer.usage.total_tokens == prompt + 24


def test_a_stream_is_the_same_text_in_whole_characters(client: openai.OpenAI, model: str, oracle: Runtime) -> None:
    options = {"max_tokens": 40, "temperature": 0, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(model=model, messages=MESSAGES, stream=True, **options))
    *told, last = chunks
    pieces = [chunk.choices[0].delta.content or "" for chunk in told]
    assert "".join(pieces) == spoken(oracle, PROMPT, 40, chat=True)
    assert sum(map(bool, pieces)) >= 2
    assert [chunk.choices[0].finish_reason for chunk in told] == [None] * (len(told) - 1) + ["length"]
    assert told[0].choices[0].delta.role == "assistant"
    assert (last.choices, last.usage.completion_tokens) == ([], 40)
    assert all(chunk.usage is None for chunk in told)
    assert len({chunk.id for chunk in chunks}) == 1


def test_characters_of_several_tokens_are_streamed_whole(client: openai.OpenAI) -> None:
    """Bytes are tokens here: two that follow one another by chance are a character now and then."""
    request = {"model": "tiny", "prompt": PROMPT, "max_tokens": 100, "temperature": 2.0}
    whole_characters = 0
    for seed in range(12):
        text = client.completions.create(**request, seed=seed).choices[0].text
        pieces = [chunk.choices[0].text for chunk in client.completions.create(**request, seed=seed, stream=True)]
        assert "".join(pieces) == text
        whole_characters += sum(ord(letter) > 127 and letter != "\ufffd" for letter in text)
    assert whole_characters > 10


def test_a_completion_takes_texts_and_token_ids(client: openai.OpenAI, model: str, oracle: Runtime) -> None:
    prompts = [PROMPT, "Report:"]
    expected = [spoken(oracle, prompt, 12, chat=False) for prompt in prompts]
    ids = [list(oracle.encode(prompt, chat=False)) for prompt in prompts]
    for prompt in (prompts, ids):
        answer = client.completions.create(model=model, prompt=prompt, max_tokens=12, temperature=0, n=2)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert [choice.text for choice in answer.choices] == [text for text in expected for _ in range(2)]
        assert answer.usage.prompt_tokens == sum(map(len, ids))
        assert answer.usage.completion_tokens == 48
    chunks = list(client.completions.create(model=model, prompt=prompts, max_tokens=12, temperature=0, stream=True))
    for index, text in enumerate(expected):
        of_it = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert "".join(choice.text for choice in of_it) == text
        assert [choice.finish_reason for choice in of_it][-1] == "length"
    assert (
        client.completions.create(model=model, prompt=ids[0], max_tokens=12, temperature=0).choices[0].text
        == expected[0]
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_across_tokens_ends_the_text_before_it(
    client: openai.OpenAI, runtime: Runtime, stream: bool
) -> None:
    ids = runtime.encode(PROMPT, chat=False)
    tokens = runtime.generate([ids], Decoding(24)).token_ids
    whole = runtime.decode(tokens)
    # Starts within one token and ends within another.
    first, second = (len(runtime.decode(tokens[:count])) for count in (2, 3))
    stop = whole[first - 1 : second]
    assert len(stop) >= 2
    end = whole.index(stop)
    request = {"model": "tiny", "prompt": PROMPT, "max_tokens": 24, "temperature": 0, "stop": ["never", stop]}
    answer = client.completions.create(**request, stream=stream)
    if stream:
        choices = [chunk.choices[0] for chunk in answer]
        text, reason = "".join(choice.text for choice in choices), choices[-1].finish_reason
    else:
        text, reason = answer.choices[0].text, answer.choices[0].finish_reason
        made = min(count for count in range(25) if stop in runtime.decode(tokens[:count]))
        assert answer.usage.completion_tokens == made
    assert (text, reason) == (whole[:end], "stop")


def test_a_seed_gives_the_same_text_whatever_runs_beside_it(client: openai.OpenAI) -> None:
    def draw(seed: int | None) -> str:
        request = {"prompt": PROMPT, "max_tokens": 16, "temperature": 1.5, "top_p": 0.95, "seed": seed}
        return client.completions.create(model="tiny", **request).choices[0].text

    alone = draw(11)
    with ThreadPoolExecutor(6) as pool:
        beside = list(pool.map(draw, [11, 12, None, 11, -3, 11]))
    assert [beside[place] for place in (0, 3, 5)] == [alone] * 3
    assert len({alone, beside[1], beside[2], beside[4]}) == 4


def test_texts_of_one_request_differ_and_each_is_what_its_own_seed_gives(client: openai.OpenAI) -> None:
    request = {"model": "tiny", "max_tokens": 16, "temperature": 1.5}
    for prompt, n in ((PROMPT, 4), ([PROMPT] * 4, 1), ([PROMPT] * 2, 2)):
        for seed in (11, None):
            choices = client.completions.create(**request, prompt=prompt, n=n, seed=seed).choices
            assert len({choice.text for choice in choices}) == 4
            if seed is not None:
                alone = client.completions.create(**request, prompt=PROMPT, seed=seed + 3)
                assert choices[3].text == alone.choices[0].text


def test_what_leaves_one_token_to_choose_is_greedy(client: openai.OpenAI, runtime: Runtime) -> None:
    expected = spoken(runtime, PROMPT, 16, chat=False)
    request = {"model": "tiny", "prompt": PROMPT, "max_tokens": 16, "seed": 5}
    for options in ({"temperature": 0}, {"temperature": 1e-9}, {"top_p": 0}, {"top_p": 1e-9}):
        assert client.completions.create(**request, **options).choices[0].text == expected
    only_one = client.completions.create(**request, temperature=2, extra_body={"top_k": 1})
    assert only_one.choices[0].text == expected
    penalised = client.completions.create(**request, temperature=0, frequency_penalty=2.0)
    assert penalised.choices[0].text != expected


def test_an_end_token_ends_a_text_unless_told_otherwise(client: openai.OpenAI) -> None:
    request = {"model": "tiny", "prompt": PROMPT, "max_tokens": 200, "temperature": 2.0}
    answers = {seed: client.completions.create(**request, seed=seed) for seed in range(12)}
    ended = {seed: answer for seed, answer in answers.items() if answer.choices[0].finish_reason == "stop"}
    assert ended
    for seed, answer in ended.items():
        assert answer.usage.completion_tokens <= 200
        assert "<|im_end|>" not in answer.choices[0].text
        forced = client.completions.create(**request, seed=seed, extra_body={"ignore_eos": True})
        assert (forced.choices[0].finish_reason, forced.usage.completion_tokens) == ("length", 200)
        assert forced.choices[0].text.startswith(answer.choices[0].text.rstrip("\ufffd"))


def test_a_chat_without_a_number_of_tokens_has_the_rest_of_the_context(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "word " * 30}]
    answer = client.chat.completions.create(
        model="tiny", messages=messages, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.usage.total_tokens == 256
    assert answer.choices[0].finish_reason == "length"


def test_messages_in_parts_and_of_every_role(client: openai.OpenAI) -> None:
    plain = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    parts = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        *MESSAGES,
    ]
    answers = [
        client.chat.completions.create(model="tiny", messages=messages, max_tokens=8, temperature=0)
        for messages in (plain, parts)
    ]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
    assert answers[0].usage == answers[1].usage


def test_models_are_listed_and_found_by_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "tiny/sparse"]
    assert client.models.retrieve("tiny/sparse").object == "model"
    with pytest.raises(openai.NotFoundError, match="no model 'other' here, only tiny, tiny/sparse"):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="other", messages=MESSAGES)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("stream", [False, True])
def test_more_tokens_than_the_context_holds(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match="the context holds 256 tokens") as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=250, stream=stream)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    assert caught.value.type == "invalid_request_error"
