"""From data to rows: splits are disjoint and stable (invariant 23), and every mistake names its row and field."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shearling.errors import ArtefactMissing, DocumentInvalid, RecipeInvalid
from shearling.evaluation.task import read_rows
from shearling.recipe.task import SplitShares, TaskSection
from train.task.rows import assign_split, check_answers, check_apart
from train.task.rows import build_rows as build_into

SPLITS = ("train", "validation", "test")


def write(path, records):
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def records(count, start=0):
    return [{"headline": f"Headline number {number}", "label": number % 2} for number in range(start, start + count)]


def section(path, **changes):
    options = {
        "text": "{{ headline }}",
        "prompt": "Q: {{ text }}\nA:",
        "choices": (" no", " yes"),
        "gold": "{{ label }}",
    }
    return TaskSection(name="headlines", path=path, **{**options, **changes})


def build(task):
    with tempfile.TemporaryDirectory() as directory:
        built = build_into(task, Path(directory))
        assert sorted(path.name for path in Path(directory).iterdir()) == sorted(f"{split}.jsonl" for split in SPLITS)
        return built, {split: read_rows(Path(directory), split) for split in SPLITS}


def build_rows(task):
    return build(task)[1]


def prompts(splits):
    return {split: {row.prompt for row in rows} for split, rows in splits.items()}


def test_splits_are_disjoint_complete_and_near_their_shares(tmp_path):
    splits = prompts(build_rows(section(write(tmp_path / "d.jsonl", records(2000)))))
    assert not splits["train"] & splits["validation"]
    assert not splits["train"] & splits["test"]
    assert not splits["validation"] & splits["test"]
    assert sum(map(len, splits.values())) == 2000
    for split, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        assert abs(len(splits[split]) / 2000 - share) < 0.04


def test_order_and_company_of_rows_do_not_matter(tmp_path):
    few = build_rows(section(write(tmp_path / "few.jsonl", records(300))))
    again = build_rows(section(write(tmp_path / "again.jsonl", records(300)[::-1])))
    more = build_rows(section(write(tmp_path / "more.jsonl", records(300) + records(300, start=300))))
    assert few == again
    assert all(prompts(few)[split] <= prompts(more)[split] for split in SPLITS)


def test_the_same_prompt_is_one_row_in_one_split(tmp_path):
    data = records(200)
    # Other labels and fields, the same prompt: the first one counts.
    twins = [{"headline": record["headline"], "label": 1 - record["label"], "source": "elsewhere"} for record in data]
    splits = build_rows(section(write(tmp_path / "d.jsonl", data + twins)))
    rows = [row for split in SPLITS for row in splits[split]]
    assert len(rows) == len({row.prompt for row in rows}) == 200
    assert {row.prompt: row.gold for row in rows} == {
        f"Q: {record['headline']}\nA:": record["label"] for record in data
    }


def test_rows_that_one_task_learns_and_another_asks_are_refused(tmp_path):
    file = write(tmp_path / "d.jsonl", records(300))
    shares = SplitShares(train=0.98, validation=0.01, test=0.01)
    named = (("task", {}), ("alike", {"gold": "{{ 1 - label }}"}), ("other", {"split": shares}))
    for name, changes in named:
        (tmp_path / name).mkdir()
        build_into(section(file, **changes), tmp_path / name)
    check_apart({"task": tmp_path / "task", "data.alike": tmp_path / "alike"})
    learnt, asked = (
        {row.prompt for split in splits for row in read_rows(tmp_path / name, split)}
        for name, splits in (("other", ("train",)), ("task", ("validation", "test")))
    )
    both = {"task": tmp_path / "task", "data.other": tmp_path / "other"}
    with pytest.raises(RecipeInvalid, match=f"^\\[data.other\\]: {len(learnt & asked)} of its train rows") as caught:
        check_apart(both)
    assert "same split as [task]" in caught.value.remedy
    # What any of them learns, and any asks.
    with pytest.raises(RecipeInvalid, match=r"^\[data.other\]: .* of \[data.alike\]"):
        check_apart({"data.other": tmp_path / "other", "data.alike": tmp_path / "alike"})


def test_rows_that_are_left_out_are_counted_and_the_first_are_named(tmp_path):
    data = records(200)
    empty = [{"headline": " ", "label": 0}] * 5
    other = [{"headline": record["headline"], "label": 1 - record["label"]} for record in data[:2]]
    built, splits = build(section(write(tmp_path / "d.jsonl", [*empty, *data, data[7], *other])))
    assert splits == build_rows(section(write(tmp_path / "clean.jsonl", data)))
    assert built.read == 208
    assert built.account.counts == {"empty": 5, "repeated": 1, "contradicting": 2}
    assert built.account.sentence(built.read) == (
        "of 208 rows 5 left out because they render to nothing (1, 2, 3, ...), 1 left out as repetitions (206), "
        "2 left out because their prompt came before with another completion (207, 208)"
    )
    assert build(section(write(tmp_path / "clean.jsonl", data)))[0].account.sentence(200) is None


def test_data_of_which_nothing_is_left_is_refused_with_the_reason(tmp_path):
    path = write(tmp_path / "d.jsonl", [{"headline": "", "label": 0}] * 9)
    with pytest.raises(RecipeInvalid, match="no train rows among 0 different ones: of 9 rows 9 left out because they"):
        build(section(path))


def test_data_without_rows_is_called_empty(tmp_path):
    (path := tmp_path / "d.jsonl").write_text("\n")
    with pytest.raises(RecipeInvalid, match="the data has no rows"):
        build(section(path))


def test_a_label_that_is_a_word_is_refused_with_how_to_write_it(tmp_path):
    path = write(tmp_path / "d.jsonl", [{"headline": f"row {place}", "label": "no"} for place in range(60)])
    with pytest.raises(RecipeInvalid, match="row 1 renders to 'no', expected an index") as caught:
        build(section(path))
    gold = caught.value.remedy.partition("'")[2].rpartition("'")[0]
    assert {row.gold for row in build_rows(section(path, gold=gold))["train"]} == {0}


def test_limits_take_a_prefix(tmp_path):
    path = write(tmp_path / "d.jsonl", records(200))
    everything, limited = build_rows(section(path)), build_rows(section(path, rows={"train": 5, "test": 2}))
    assert limited == {
        "train": everything["train"][:5],
        "validation": everything["validation"],
        "test": everything["test"][:2],
    }


@given(text=st.text(max_size=20), train=st.floats(0.05, 0.9))
def test_a_split_is_a_function_of_the_content(text, train):
    shares = SplitShares(train=train, validation=(1 - train) / 2, test=1 - train - (1 - train) / 2)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    split = assign_split(digest, shares)
    assert split == assign_split(digest, shares)
    assert (split == "train") == (int(digest[:16], 16) / 2**64 < train)


def test_rendering(tmp_path):
    path = write(
        tmp_path / "d.jsonl",
        [{"input": [{"content": "x"}, {"content": f"naïve {n} “quoted”"}], "ideal": str(n % 2)} for n in range(60)],
    )
    rows = build_rows(section(path, text="{{ input[1].content }}", gold="{{ ideal }}"))["train"]
    for row in rows:
        number = int(row.text.split()[1])
        assert row.prompt == f"Q: naïve {number} “quoted”\nA:"
        assert (row.gold, row.completion) == (number % 2, (" no", " yes")[number % 2])
        assert row.id == hashlib.sha256(row.prompt.encode()).hexdigest()


def test_fields_of_any_name_are_those_of_the_row(tmp_path):
    lines = ["Ticket Body,is-urgent,2nd", *(f"server {number} burns,{number % 2},x" for number in range(60))]
    (tmp_path / "d.csv").write_text("\n".join(lines))
    templates = {
        "text": '{{ row["Ticket Body"] }}',
        "prompt": '{{ text }}, {{ row["2nd"] }}',
        "gold": '{{ row["is-urgent"] }}',
    }
    row = build_rows(section(tmp_path / "d.csv", **templates))["train"][0]
    assert row.prompt == f"{row.text}, x"
    assert row.gold == int(row.text.split()[1]) % 2
    for text in ("{{ Ticket Body }}", "{{ ticket-body }}", '{{ row["Body"] }}'):
        with pytest.raises(RecipeInvalid) as caught:
            build_rows(section(tmp_path / "d.csv", **{**templates, "text": text}))
        assert 'row["' in caught.value.remedy
    path = write(tmp_path / "d.jsonl", [{"row": f"third {n}", "text": f"original {n}", "label": 0} for n in range(60)])
    kept = build_rows(section(path, text="{{ row }}"))["train"][0]
    assert kept.text.startswith("third")
    path = write(tmp_path / "e.jsonl", [{"row": n, "Ticket Body": f"third {n}", "label": 0} for n in range(60)])
    with pytest.raises(RecipeInvalid) as caught:
        build_rows(section(path, text='{{ row["Ticket Body"] }}'))
    assert "One is named row" in caught.value.remedy


def test_a_text_of_the_row_is_there_beside_the_rendered_one(tmp_path):
    path = write(tmp_path / "d.jsonl", [{"text": f"own {n}", "label": 0} for n in range(60)])
    row = build_rows(section(path, text="so {{ text }}", prompt='{{ text }}, {{ row["text"] }}'))["train"][0]
    assert row.prompt == f"{row.text}, {row.text.removeprefix('so ')}"


def test_generative_tasks_have_no_choices(tmp_path):
    path = write(tmp_path / "d.jsonl", records(60))
    row = build_rows(section(path, choices=None, gold=None, completion=" {{ label }}\n"))["train"][0]
    assert (row.choices, row.gold) == (None, None)
    # The last newline is the author's, and is kept.
    assert row.completion in (" 0\n", " 1\n")


@pytest.mark.parametrize(
    ("changes", "record", "field", "message"),
    [
        ({}, {"label": 0}, "task.text", "row 4: 'headline' is undefined"),
        ({}, {"headline": "x"}, "task.gold", "row 4: 'label' is undefined"),
        ({}, {"headline": "x", "label": 2}, "task.gold", "row 4 renders to '2', expected an index 0..1"),
        ({}, {"headline": "x", "label": -1}, "task.gold", "'-1'"),
        ({}, {"headline": "x", "label": "yes"}, "task.gold", "'yes'"),
        ({"prompt": "{{ text + 1 }}"}, {"headline": "x", "label": 0}, "task.prompt", "row 1"),
        ({"prompt": "{{ text"}, {"headline": "x", "label": 0}, "task.prompt", "not a Jinja template"),
        ({"text": "{{ headline.__class__.__mro__ }}"}, {"headline": "x", "label": 0}, "task.text", "unsafe"),
        ({"gold": "{{ [0, 1].index(label) }}"}, {"headline": "x", "label": "c"}, "task.gold", "row 4: ValueError: "),
        ({"prompt": "{{ 1 // (2 - label) }}"}, {"headline": "x", "label": 2}, "task.prompt", "row 4: ZeroDivision"),
    ],
)
def test_mistakes_name_row_and_field(tmp_path, changes, record, field, message):
    path = write(tmp_path / "d.jsonl", [*records(3), record, *records(40, start=4)])
    with pytest.raises(RecipeInvalid) as caught:
        build_rows(section(path, **changes))
    assert caught.value.where == field
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "malformed JSON"), ("[1]", "expected an object, found list"), ("\x00", "malformed JSON")],
)
def test_malformed_lines_are_named(tmp_path, line, message):
    path = write(tmp_path / "d.jsonl", records(3))
    path.write_text(path.read_text() + f"\n{line}\n")
    with pytest.raises(DocumentInvalid, match=message) as caught:
        build_rows(section(path))
    assert caught.value.where.endswith("line 5")


def test_half_a_character_is_refused_where_it_would_be_written(tmp_path):
    """JSON can escape half of a surrogate pair, which no file of text holds."""
    half = {"headline": "a fox \ud83d", "label": 0}
    for changes, field in (({}, "task.text"), ({"text": "fox", "prompt": "{{ headline }}"}, "task.prompt")):
        path = write(tmp_path / "d.jsonl", [*records(3), half, *records(40, start=4)])
        with pytest.raises(DocumentInvalid, match="surrogate") as caught:
            build_rows(section(path, **changes))
        assert caught.value.where == f"{field}, row 4"
    unused = {"headline": "a fox", "label": 0, "source": "\ud83d"}
    build_rows(section(write(tmp_path / "d.jsonl", [unused, *records(60)])))


def test_text_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"headline": "caf\xe9", "label": 0}\n')
    with pytest.raises(DocumentInvalid, match="UTF-8"):
        build_rows(section(path))


def test_missing_data_and_empty_splits_are_refused(tmp_path):
    with pytest.raises(ArtefactMissing, match="no such data file"):
        build_rows(section(tmp_path / "none.jsonl"))
    with pytest.raises(RecipeInvalid, match="rows among 1 different"):
        build_rows(section(write(tmp_path / "one.jsonl", records(1) * 9)))


@pytest.mark.parametrize("nested", [True, False])
def test_saved_data_sets_are_read(tmp_path, nested):
    import datasets

    table = datasets.Dataset.from_list(records(120))
    (datasets.DatasetDict({"train": table}) if nested else table).save_to_disk(str(tmp_path / "saved"))
    from_disk = build_rows(section(None, dataset={"name": str(tmp_path / "saved")}))
    assert from_disk == build_rows(section(write(tmp_path / "d.jsonl", records(120))))


def test_data_sets_that_are_not_there_say_how_to_get_them(tmp_path):
    with pytest.raises(ArtefactMissing, match="save_to_disk"):
        build_rows(section(None, dataset={"name": str(tmp_path / "nowhere")}))


def test_a_pattern_that_finds_no_answer_in_what_is_learnt_is_refused(tmp_path):
    path = write(tmp_path / "d.jsonl", records(100))
    generative = {"choices": None, "gold": None, "completion": " {{ label }}", "answer": "{{ label }}"}
    (tmp_path / "task").mkdir()
    build_into(section(path, **generative), tmp_path / "task")
    check_answers(section(path, **generative, answer_pattern="[0-9]"), tmp_path / "task", where="task")
    with pytest.raises(RecipeInvalid, match=r"^\[task\] answer_pattern: .* such as ' [01]'"):
        check_answers(section(path, **generative, answer_pattern="[a-z]+"), tmp_path / "task", where="task")
