"""Conversations: the tokens that are learnt are the assistant's, token by token, whatever the template."""

from __future__ import annotations

import json
from datetime import datetime
from types import SimpleNamespace

import pytest
from tokenizers.processors import ByteLevel
from transformers.utils import chat_template_utils

from shearling.errors import DocumentInvalid, ModelUnsupported, RecipeInvalid
from shearling.evaluation.task import TaskRow
from shearling.recipe.task import TaskSection
from tests.support.chat_templates import CHATML, FAMILIES, FORGETFUL, GEMMA, ZEPHYR
from tests.support.tiny_models import tiny_tokenizer
from train.super_adapter.tokenised_rows import IGNORED_LABEL, RowTokeniser
from train.task.chat import ChatRenderer, token_spans
from train.task.messages import read_messages
from train.task.rendering import RowRenderer
from train.task.row_account import RowAccount

TALK = [
    {"role": "user", "content": "Is this headline sarcastic? "},
    {"role": "assistant", "content": "yes, very\nmuch so: 2024"},
    {"role": "user", "content": "And the lazy dog?"},
    {"role": "assistant", "content": "<b>no</b>"},
]
SYSTEM = {"role": "system", "content": "Answer briefly."}
CALLED = [
    {"role": "user", "content": "How warm is it?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "warmth", "arguments": '{"in": "C"}'}}],
    },
    {"role": "tool", "content": "12"},
    {"role": "assistant", "content": "12 degrees"},
]
TOOLED = (
    "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{% if 'tool_calls' in message %}{% for call in message['tool_calls'] %}"
    "{{ call['function']['arguments'] | tojson }}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def section(**changes) -> TaskSection:
    return TaskSection(**{"name": "talks", "path": "talks.jsonl", "messages": "messages", **changes})


def render(tokenizer, record, **changes) -> tuple[TaskRow, bool]:
    row, whole = RowRenderer(section(**changes), ChatRenderer(tokenizer))(record, 1)
    assert row is not None
    return row, whole


def encode(tokenizer, row, *, max_length=512, account=None, train_on_prompt=False):
    return RowTokeniser(tokenizer, max_length, train_on_prompt)([row], account=account)


def learnt_pieces(tokenizer, encoded) -> list[str]:
    """The learnt tokens, a text for each run of them."""
    pieces, run = [], []
    for label in [*encoded["labels"], IGNORED_LABEL]:
        if label != IGNORED_LABEL:
            run.append(label)
        elif run:
            pieces.append(tokenizer.decode(run))
            run = []
    return pieces


def mask_of_transformers(tokenizer, messages) -> tuple[list[int], list[int]]:
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    return encoded["input_ids"], encoded["assistant_masks"]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize("begins", [[], [SYSTEM]])
def test_the_learnt_tokens_are_those_of_the_tagged_template(name, tagged, begins):
    family = FAMILIES[name]
    messages = [*(begins if name != "gemma" else []), *TALK]
    ids, mask = mask_of_transformers(family.tokenizer(family.template), messages)
    assert 0 < sum(mask) < len(mask)
    tokenizer = family.tokenizer(family.template if tagged else family.published)
    row, whole = render(tokenizer, {"messages": messages})
    (encoded,) = encode(tokenizer, row)
    assert encoded["input_ids"] == ids
    assert encoded["labels"] == [
        token if is_learnt else IGNORED_LABEL for token, is_learnt in zip(ids, mask, strict=True)
    ]
    assert whole
    (everything,) = encode(tokenizer, row, train_on_prompt=True)
    assert everything["labels"] == ids


def test_an_answer_is_asked_as_the_model_is_asked():
    tokenizer = ZEPHYR.tokenizer(ZEPHYR.published)
    row, _ = render(tokenizer, {"messages": [SYSTEM, *TALK, {"role": "user", "content": "Thanks"}]})
    assert row.prompt == tokenizer.apply_chat_template([SYSTEM, *TALK[:3]], tokenize=False, add_generation_prompt=True)
    assert row.completion == "<b>no</b>"
    assert row.tail == "<|im_end|>\n"
    assert row.text.startswith("Answer briefly.\nIs this headline")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("form", ["published", "template"])
def test_a_greeting_that_nobody_asked_for_is_left_out(name, form):
    tokenizer = FAMILIES[name].tokenizer(getattr(FAMILIES[name], form))
    greeting = {"from": "gpt", "value": "Hello! How can I help?"}
    shared = [{"from": message["role"], "value": message["content"]} for message in TALK]
    assert render(tokenizer, {"messages": [greeting, *shared]}) == render(tokenizer, {"messages": TALK})
    if name != "gemma":
        expected = render(tokenizer, {"messages": [SYSTEM, *TALK]})
        for begins in ([SYSTEM, greeting], [greeting, SYSTEM], [greeting, SYSTEM, greeting]):
            assert render(tokenizer, {"messages": [*begins, *TALK]}) == expected


def roles_read(messages) -> list[str]:
    return [message["role"] for message in read_messages({"messages": messages}, "messages", 1)]


def test_what_is_said_to_a_system_message_alone_is_learnt():
    """It may be all that asks before the last answer; a tool answers, and asks where nobody else does."""
    for messages in ([SYSTEM, TALK[1]], [SYSTEM, *TALK[1:3]], [TALK[1], SYSTEM, TALK[1]]):
        assert roles_read(messages) == ["system", "assistant"]
    assert roles_read([SYSTEM, *CALLED[1:]]) == ["system", "assistant", "tool", "assistant"]
    assert roles_read(CALLED[1:]) == ["tool", "assistant"]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": ["user"], "content": "hi"}, "unknown role"),
        ({"role": "assistant", "content": "hi", "tool_calls": 5}, "expected a list of calls"),
    ],
)
def test_a_message_of_other_types_is_named(message, said):
    with pytest.raises(DocumentInvalid, match=said):
        roles_read([TALK[0], message])


@pytest.mark.parametrize("form", ["published", "template"])
@pytest.mark.parametrize("begins", ["", "\u00e9  "])
def test_indentation_is_learnt_where_a_tokenizer_trims_its_offsets(form, begins):
    """As the tokenizer of GPT-NeoX does, whose tokens of white space alone stand for no character."""
    answer = f"{begins}if x:\n    return  1"
    if form == "published":
        # With tags transformers finds no token at white space, and marks nothing.
        answer = f"    {answer}"
    talk, tokenizer = [TALK[0], {"role": "assistant", "content": answer}], CHATML.tokenizer(getattr(CHATML, form))
    row, _ = render(tokenizer, {"messages": talk})
    (expected,) = encode(tokenizer, row)
    tokenizer.backend_tokenizer.post_processor = ByteLevel(add_prefix_space=False, trim_offsets=True)
    assert (1, 1) in tokenizer("  x", return_offsets_mapping=True)["offset_mapping"]
    row, _ = render(tokenizer, {"messages": talk})
    (found,) = encode(tokenizer, row)
    assert learnt_pieces(tokenizer, found) == [f"{answer}<|im_end|>"]
    assert found == expected


def test_a_token_of_no_character_takes_none():
    """Such as one that a tokenizer puts between texts."""
    assert token_spans([(0, 0), (0, 3), (4, 6), (0, 0), (7, 9), (7, 9)]) == [
        (0, 0),
        (0, 3),
        (3, 6),
        (0, 0),
        (6, 9),
        (7, 9),
    ]


DATED = "{{ '<|im_start|>system\nToday: ' + strftime_now('%d %b %Y') + '<|im_end|>\n' }}"


@pytest.mark.parametrize("template", [CHATML.published, CHATML.template], ids=["plain", "tagged"])
def test_a_row_is_the_same_on_every_day(template, monkeypatch):
    tokenizer, rows = CHATML.tokenizer(DATED + template), []
    for year in (2025, 2026):
        clock = SimpleNamespace(now=lambda year=year: datetime(year, 3, 4))
        monkeypatch.setattr(chat_template_utils, "datetime", clock)
        assert f"Today: 04 Mar {year}" in tokenizer.apply_chat_template(TALK, tokenize=False)
        rows.append(render(tokenizer, {"messages": TALK}))
    assert rows[0] == rows[1]
    assert "Today: 26 Jul 2024" in rows[0][0].prompt


def test_share_gpt_and_the_json_of_a_table_are_the_same_conversation():
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    shared = [{"from": names[message["role"]], "value": message["content"]} for message in [SYSTEM, *TALK]]
    tokenizer = CHATML.tokenizer(CHATML.published)
    expected = render(tokenizer, {"messages": [SYSTEM, *TALK]})
    assert render(tokenizer, {"conversations": shared}, messages="conversations") == expected
    assert render(tokenizer, {"messages": json.dumps([SYSTEM, *TALK])}) == expected
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in [SYSTEM, *TALK]]
    assert render(tokenizer, {"messages": parts}) == expected
    # As Arrow has rows of which some call tools.
    nulls = [{**message, "tool_calls": None, "name": None} for message in [SYSTEM, *TALK]]
    assert render(tokenizer, {"messages": nulls}) == expected


def test_tool_calls_are_learnt_and_what_tools_answer_is_not():
    tokenizer = CHATML.tokenizer(TOOLED)
    tools = [{"type": "function", "function": {"name": "warmth"}}]
    row, whole = render(tokenizer, {"messages": CALLED, "tools": json.dumps(tools)})
    assert whole
    (encoded,) = encode(tokenizer, row)
    assert learnt_pieces(tokenizer, encoded) == ['{"in": "C"}<|im_end|>', "12 degrees<|im_end|>"]
    assert row.prompt.startswith('<|im_start|>system\n[{"type": "function"')


def test_where_a_template_rewrites_earlier_answers_the_last_is_learnt():
    tokenizer = CHATML.tokenizer(FORGETFUL)
    row, whole = render(tokenizer, {"messages": TALK})
    (encoded,) = encode(tokenizer, row)
    assert not whole
    assert learnt_pieces(tokenizer, encoded) == ["<think>\n\n</think>\n\n<b>no</b><|im_end|>"]
    assert render(tokenizer, {"messages": TALK[:2]})[1]


def test_a_conversation_that_is_cut_is_counted_and_one_without_answer_left_is_dropped():
    tokenizer = CHATML.tokenizer(CHATML.published)
    row, _ = render(tokenizer, {"messages": TALK})
    (encoded,) = encode(tokenizer, row)
    whole = len(encoded["input_ids"])
    # The line break behind the last turn is not learnt, and may be lost.
    for length, counts in ((whole, {}), (whole - 1, {}), (whole - 2, {"cut": 1}), (10, {"unlabelled": 1})):
        account = RowAccount()
        assert len(encode(tokenizer, row, max_length=length, account=account)) == (length > 10)
        assert account.counts == counts


def test_the_answer_to_be_found_may_be_the_last_turn():
    tokenizer = CHATML.tokenizer(CHATML.published)
    row, _ = render(tokenizer, {"messages": TALK, "key": "no"}, answer="{{ key }}")
    assert row.answer == "no"
    assert render(tokenizer, {"messages": TALK}, answer="{{ completion }}")[0].answer == "<b>no</b>"
    named = {"messages": TALK, "the key": "no"}
    assert render(tokenizer, named, answer='{{ row["the key"] }} {{ completion }}')[0].answer == "no <b>no</b>"


def turn(**changes):
    return [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes", **changes}]


@pytest.mark.parametrize(
    ("messages", "where", "message"),
    [
        (None, "row 7, messages", "expected a list of messages, found nothing"),
        ([], "row 7, messages", "found nothing"),
        ("[{", "row 7, messages", "malformed JSON"),
        ({"role": "user"}, "row 7, messages", "found dict"),
        (["hi"], "row 7, messages, message 1", "expected a message, found str"),
        (turn(role="wizard"), "row 7, messages, message 2", "unknown role 'wizard'"),
        ([{"content": "hi"}], "row 7, messages, message 1", "no role"),
        ([{"role": "user"}], "row 7, messages, message 1", "no content"),
        ([{"from": "human"}], "row 7, messages, message 1", "no value"),
        (turn()[:1], "row 7, messages", "the assistant says nothing"),
        (turn()[1:] * 2, "row 7, messages", "the assistant answers nobody"),
        (turn(content=[{"type": "image_url"}]), "row 7, messages, message 2", "content of type 'image_url'"),
    ],
)
def test_what_is_no_conversation_names_row_and_message(messages, where, message):
    with pytest.raises(DocumentInvalid, match=message) as caught:
        read_messages({"messages": messages}, "messages", 7)
    assert caught.value.where == where
    assert caught.value.remedy
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("field", ["messages", "tools"])
def test_half_a_character_names_the_row(field):
    half = "a fox \ud83d"
    tools = [{"type": "function", "function": {"name": half}}] if field == "tools" else None
    talk = [{**TALK[0], "content": half}, *TALK[1:]] if field == "messages" else TALK
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TOOLED
    with pytest.raises(DocumentInvalid, match="surrogate") as caught:
        render(tokenizer, {"messages": talk, "tools": tools})
    assert caught.value.where == f"task.{field}, row 1"


def test_a_missing_field_says_which_there_are():
    with pytest.raises(DocumentInvalid, match="the row has conversations, id"):
        read_messages({"conversations": TALK, "id": 1}, "messages", 7)


def test_what_a_template_refuses_names_the_row():
    renderer = RowRenderer(section(), ChatRenderer(GEMMA.tokenizer(GEMMA.published)))
    for messages, reason in (([SYSTEM, *TALK], "System role not supported"), (TALK[:1] + TALK, "must alternate")):
        with pytest.raises(RecipeInvalid, match=reason) as caught:
            renderer({"messages": messages}, 12)
        assert caught.value.where == "task.messages, row 12"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ range(1000000000) | list }}", "OverflowError"),
        ("{{ messages + 1 }}", "TypeError: can only concatenate"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "RecursionError"),
    ],
)
def test_a_template_that_computes_what_cannot_be_names_the_row(template, reason):
    renderer = RowRenderer(section(), ChatRenderer(CHATML.tokenizer(CHATML.published + template)))
    with pytest.raises(RecipeInvalid, match=reason) as caught:
        renderer({"messages": TALK}, 12)
    assert caught.value.where == "task.messages, row 12"


def test_a_template_that_hides_where_the_answer_begins_is_refused():
    hiding = CHATML.published.replace("add_generation_prompt", "true").replace(
        "<|im_start|>assistant\n' }}{% endif", "X' }}{% endif"
    )
    with pytest.raises(RecipeInvalid, match="cannot be said where the answer begins"):
        render(CHATML.tokenizer(hiding), {"messages": TALK})


def test_a_model_without_a_template_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ModelUnsupported, match="no chat template") as caught:
        ChatRenderer(tokenizer)
    assert "'prompt'" in caught.value.remedy
