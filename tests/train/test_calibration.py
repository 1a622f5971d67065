"""Calibration windows: from the training rows or a file, placed by the seed, never shorter than asked."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from shearling.calibration import windows
from shearling.calibration.windows import read_texts, token_stream
from shearling.errors import ArtefactMissing, DocumentInvalid, RecipeInvalid
from shearling.evaluation.task import TaskRow
from shearling.recipe.calibration import CalibrationSection
from tests.support.tiny_models import CORPUS, EOS, tiny_tokenizer
from train import calibration
from train.calibration import calibration_blocks, check_text

ROWS = [
    TaskRow(id=str(number), prompt=text, choices=None, gold=None, completion=" yes", text=text)
    for number, text in enumerate(CORPUS)
]


def blocks(section, rows=ROWS, seed=0, *, classifies=False):
    where = "sparsity.calibration"
    return calibration_blocks(section, rows, tiny_tokenizer(), classifies=classifies, seed=seed, where=where)


def stream(*texts):
    tokenizer = tiny_tokenizer()
    return [token for text in texts for token in (*tokenizer(text)["input_ids"], tokenizer.convert_tokens_to_ids(EOS))]


def test_windows_are_contiguous_pieces_of_the_training_text():
    whole = stream(*(row.prompt + row.completion for row in ROWS))
    found = blocks(CalibrationSection(samples=20, seq_len=10))
    assert len(found) == 20
    pieces = {tuple(whole[start : start + 10]) for start in range(len(whole) - 9)}
    assert all(block.dtype == torch.int64 and tuple(block.tolist()) in pieces for block in found)


def test_a_classifier_is_shown_the_prompts_alone():
    whole = stream(*(row.prompt for row in ROWS))
    found = blocks(CalibrationSection(samples=1, seq_len=len(whole)), classifies=True)
    assert found[0].tolist() == whole
    section = CalibrationSection(seq_len=len(whole) + 1)
    with pytest.raises(RecipeInvalid, match=f"{len(whole)} tokens of text"):
        check_text(
            section,
            ROWS,
            tiny_tokenizer(),
            classifies=True,
            readable=len(tiny_tokenizer()),
            where="sparsity.calibration",
        )


def test_the_seed_places_them():
    section = CalibrationSection(samples=6, seq_len=10)
    first, again, other = (torch.stack(blocks(section, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_file_takes_the_place_of_the_rows(tmp_path):
    (tmp_path / "text.txt").write_text(CORPUS[0])
    length = len(stream(CORPUS[0]))
    found = blocks(CalibrationSection(samples=2, seq_len=length, path=tmp_path / "text.txt"), rows=[])
    assert [block.tolist() for block in found] == [stream(CORPUS[0])] * 2


def test_too_little_text_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(RecipeInvalid, match="a window needs 4096") as caught:
        blocks(CalibrationSection(samples=1, seq_len=4096))
    assert caught.value.where == "sparsity.calibration.seq_len"
    with pytest.raises(ArtefactMissing):
        blocks(CalibrationSection(path=tmp_path / "none.txt"))


def test_whether_a_text_has_a_window_is_known_without_tokenising_all_of_it(tmp_path, monkeypatch):
    text, tokenizer, seen = tmp_path / "text.txt", tiny_tokenizer(), []
    text.write_text("the quick brown fox " * 20000)
    encode = windows.token_stream
    monkeypatch.setattr(
        calibration, "token_stream", lambda texts, tokenizer: seen.append(texts) or encode(texts, tokenizer)
    )
    section = CalibrationSection(path=text, seq_len=64)
    check_text(section, [], tokenizer, classifies=False, readable=len(tiny_tokenizer()), where="width.calibration")
    assert sum(len(part) for texts in seen for part in texts) < 70000
    # The rows take turns with it, and have none.
    rows = [TaskRow(id="0", prompt="fox", choices=None, gold=None, completion="", text="fox")] * 3
    count = encode(["fox"] * 3, tokenizer).numel()
    with pytest.raises(RecipeInvalid, match=f"{count} tokens of text, a window needs 64") as caught:
        check_text(
            section.model_copy(update={"task_rows": True}),
            rows,
            tokenizer,
            classifies=False,
            readable=len(tiny_tokenizer()),
            where="width.calibration",
        )
    assert caught.value.where == "width.calibration.seq_len"
    check_text(
        CalibrationSection(seq_len=count),
        rows,
        tokenizer,
        classifies=False,
        readable=len(tiny_tokenizer()),
        where="width.calibration",
    )
    with pytest.raises(ArtefactMissing):
        check_text(
            CalibrationSection(path=tmp_path / "none.txt"),
            rows,
            tokenizer,
            classifies=False,
            readable=len(tiny_tokenizer()),
            where="width.calibration",
        )


def test_lines_of_json_end_where_json_says(tmp_path):
    """Other ends of lines that Unicode has are legal in a string."""
    texts = [f"{CORPUS[0]}\u2028{CORPUS[1]}", f"{CORPUS[2]}\u2029\u0085{CORPUS[3]}"]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"t": text}, ensure_ascii=False) + "\r\n" for text in texts), encoding="utf-8")
    assert read_texts(path, "t", remedy="") == texts


@pytest.mark.parametrize(
    ("content", "field", "message", "line"),
    [
        (b"caf\xe9", None, "not UTF-8 at byte 3", ""),
        (b'{"t": "x"}\n{"t": "caf\xe9"}\n', "t", "not UTF-8 at byte 10", ", line 2"),
        (b'{"t": "x"}\n\n{"s": "x"}\n', "t", "no JSON with the key 't'", ", line 3"),
        (b'{"t": "x"}\n{"t": "x \\ud83d"}\n', "t", "surrogate", ", line 2"),
        (b'{"t": "x"}\n{"t": null}\n', "t", "no text at the key 't': None", ", line 2"),
    ],
)
def test_what_is_no_calibration_text_is_named(tmp_path, content, field, message, line):
    path = tmp_path / "text.jsonl"
    path.write_bytes(content)
    with pytest.raises(DocumentInvalid, match=message) as caught:
        read_texts(path, field, remedy="Write it again")
    assert caught.value.where == f"{path}{line}"


def test_a_token_that_the_model_does_not_read_is_named(tmp_path):
    path, tokenizer = tmp_path / "text.txt", tiny_tokenizer()
    path.write_text("a fox " * 200)
    section = CalibrationSection(samples=1, seq_len=8, path=path)
    readable = 1 + max(tokenizer(path.read_text())["input_ids"])
    check_text(section, [], tokenizer, classifies=False, readable=len(tokenizer), where="sparsity")
    with pytest.raises(RecipeInvalid, match=r"^sparsity: its text has the token .* reads the first"):
        check_text(section, [], tokenizer, classifies=False, readable=readable - 1, where="sparsity")


def test_a_mark_of_the_order_of_bytes_is_no_text(tmp_path):
    """As Windows puts it before UTF-8."""
    path = tmp_path / "text"
    path.write_text('{"text": "a fox"}\n{"text": "\ufeff"}\n', encoding="utf-8-sig")
    assert read_texts(path, "text", remedy="") == ["a fox", "\ufeff"]
    path.write_text("a fox", encoding="utf-8-sig")
    assert read_texts(path, remedy="") == ["a fox"]


@pytest.mark.parametrize("field", [None, "t"])
def test_of_a_long_file_the_beginning_is_read(tmp_path, monkeypatch, field):
    line = json.dumps({"t": "caf\u00e9"}, ensure_ascii=False).encode() + b"\r\n"
    path = tmp_path / "text.jsonl"
    # What stands behind the limit is neither JSON nor UTF-8.
    path.write_bytes(3 * line + b"\xe9\n")
    monkeypatch.setattr(windows, "MOST_BYTES", 2 * len(line) + line.index(b"\xa9"))
    monkeypatch.setattr(windows, "PIECE_CHARACTERS", 30)
    texts = read_texts(path, field, remedy="")
    if field is None:
        whole = (2 * line + line[: line.index(b"\xc3")]).decode().replace("\r\n", "\n")
        assert texts == [whole[:30], whole[30:]]
    else:
        assert texts == ["caf\u00e9"] * 3


class Asked:
    """A tokenizer that notes how many characters it was given at once."""

    def __init__(self):
        self.tokenizer, self.characters = tiny_tokenizer(), []

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __call__(self, texts):
        self.characters.append(sum(map(len, texts)) if isinstance(texts, list) else len(texts))
        return self.tokenizer(texts)


def test_many_texts_are_tokenised_some_at_a_time_and_give_the_same_tokens(monkeypatch):
    monkeypatch.setattr(windows, "BATCH_CHARACTERS", 1000)
    asked, texts = Asked(), [*CORPUS, ""] * 40
    found = token_stream(iter(texts), asked)
    assert found.dtype == torch.int64
    assert found.tolist() == stream(*texts)
    assert max(asked.characters) < 1000 + max(map(len, texts))


def test_a_file_without_a_line_is_too_short(tmp_path):
    (tmp_path / "text.jsonl").write_text("\n")
    section = CalibrationSection(samples=1, seq_len=8, path=tmp_path / "text.jsonl", field="t")
    with pytest.raises(RecipeInvalid, match="0 tokens of text"):
        blocks(section, rows=[])


def test_a_text_begins_once_and_ends_once():
    """Templates of conversations bring the beginning of text, and some tokenizers add it and the end."""
    tokenizer, plain = tiny_tokenizer(), tiny_tokenizer()(CORPUS[0])["input_ids"]
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"<s> $A {EOS}", special_tokens=[("<s>", first), (EOS, last)]
    )
    for text in (CORPUS[0], "<s>" + CORPUS[0]):
        assert token_stream([text], tokenizer).tolist() == [first, *plain, last]


def test_windows_of_a_text_and_of_the_rows_take_turns(tmp_path):
    (tmp_path / "text.txt").write_text("zebra " * 60)
    section = CalibrationSection(samples=7, seq_len=10, path=tmp_path / "text.txt", task_rows=True)
    general = {tuple(stream("zebra " * 60)[start : start + 10]) for start in range(400)}
    whole = stream(*(row.prompt + row.completion for row in ROWS))
    task = {tuple(whole[start : start + 10]) for start in range(len(whole) - 9)}
    found = [tuple(block.tolist()) for block in blocks(section)]
    assert len(found) == 7
    assert all(block in general for block in found[::2])
    assert all(block in task for block in found[1::2])
