"""Tasks of the harness: a row has the same examples before it whenever, and beside whatever other rows, it is asked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from shearling.errors import DocumentInvalid, UsageError
from shearling.evaluation.evaluator import Evaluator, torch_scorer
from tests.support.tiny_models import FAMILIES, tiny_tokenizer


def write_task(directory: Path, *, examples: int = 12, rows: int = 9) -> Path:
    """Rows of a task of the harness, asked behind two examples that it draws."""
    directory.mkdir()
    for split, count in (("train", examples), ("validation", rows)):
        written = [{"prompt": f"{split} {number}?", "gold": number % 2} for number in range(count)]
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    config = {
        "task": "asked",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"train": "train.jsonl", "validation": "validation.jsonl"}},
        "training_split": "train",
        "validation_split": "validation",
        "fewshot_split": "train",
        "num_fewshot": 2,
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": ["no", "yes"],
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}],
    }
    (directory / "asked.yaml").write_text(json.dumps(config))
    return directory


def open_task(directory: Path) -> Evaluator:
    return Evaluator("asked", split="validation", include_path=directory)


def test_a_row_is_asked_alike_at_every_measurement(tmp_path: Path) -> None:
    directory, model, tokenizer = write_task(tmp_path / "task"), FAMILIES["llama"](), tiny_tokenizer()
    measure = open_task(directory).on_torch(model, tokenizer, precision="fp32")
    whole, again, places = measure(), measure(), [7, 2, 5]
    elsewhere = open_task(directory).on_torch(model, tokenizer, precision="fp32")(places)
    assert whole.losses is not None
    assert again.losses == whole.losses
    assert elsewhere.losses == pytest.approx([whole.losses[place] for place in places], rel=1e-5)


def test_rows_have_examples_of_their_own(tmp_path: Path) -> None:
    task = open_task(write_task(tmp_path / "task"))._answers
    prompts = [task.fewshot_context(document, num_fewshot=2) for document in task.eval_docs]
    assert all(prompt.count("train ") == 2 for prompt in prompts)
    assert len({prompt[: prompt.index("validation")] for prompt in prompts}) > 1


@pytest.mark.parametrize("sampler", ["default", "first_n"])
@pytest.mark.parametrize("split", ["validation", None])
def test_a_row_is_no_example_of_itself(tmp_path: Path, sampler: str, split: str | None) -> None:
    directory = write_task(tmp_path / "task")
    config = json.loads((directory / "asked.yaml").read_text())
    changes = {"test_split": "train", "fewshot_config": {"sampler": sampler, "split": split}}
    del config["fewshot_split"], config["training_split"]
    (directory / "asked.yaml").write_text(json.dumps(config | changes))
    task = open_task(directory)._answers
    for document in task.eval_docs:
        prompt = task.fewshot_context(document, num_fewshot=2)
        assert prompt.count("validation ") == 3
        assert prompt.count(document["prompt"]) == 1


def test_a_task_is_another_one_where_its_examples_come_from_other_rows(tmp_path: Path) -> None:
    one, more = (write_task(tmp_path / str(count), examples=count) for count in (12, 13))
    assert open_task(one).sha256 != open_task(more).sha256
    assert open_task(one).row_digests == open_task(more).row_digests


def test_a_metric_in_percent_is_no_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = open_task(write_task(tmp_path / "task"))
    samples = [{"f1": 0.0, "filter": "none"}] * 99 + [{"f1": 66.7, "filter": "none"}]
    told = {"results": {"asked": {"f1,none": 0.667}}, "samples": {"asked": samples}}
    monkeypatch.setattr("shearling.evaluation.evaluator._run", lambda *given, **options: told)
    with pytest.raises(UsageError, match=r"its f1 is 66\.7, and an accuracy is a share"):
        evaluator.measure(torch_scorer(FAMILIES["llama"](), tiny_tokenizer()))


def test_brackets_in_the_name_of_a_directory_are_no_pattern(tmp_path: Path) -> None:
    write_task(tmp_path / "exp1", rows=3)
    model, tokenizer = FAMILIES["llama"](), tiny_tokenizer()
    for name in ("exp[12]", "exp*", "a?b", "[12]"):
        task = open_task(write_task(tmp_path / name))
        assert task.on_torch(model, tokenizer, precision="fp32")().n == task.rows == 9


FAULTS: dict[str, dict[str, object]] = {
    "unexpected end of template": {"doc_to_text": "{{ prompt"},
    "'nowhere' is undefined": {"doc_to_text": "{{ nowhere.at_all if '8' in prompt else prompt }}"},
    "invalid output_type 'multiple_choce'": {"output_type": "multiple_choce"},
    "unexpected keyword argument 'doc_to_txt'": {"doc_to_txt": "prompt"},
    "no row has a right answer: 'label' is none of the choices": {"doc_to_target": "label"},
    "names no column: 'label'": {"output_type": "loglikelihood", "doc_to_choice": None, "doc_to_target": "label"},
}


def change_task(directory: Path, **changes: object) -> Path:
    file = directory / "asked.yaml"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return file


@pytest.mark.parametrize("told", FAULTS)
def test_a_faulty_task_file_is_named(tmp_path: Path, told: str) -> None:
    directory = write_task(tmp_path / "task")
    file = change_task(directory, **FAULTS[told])
    with pytest.raises(DocumentInvalid, match=re.escape(told)) as caught:
        open_task(directory).on_torch(FAMILIES["llama"](), tiny_tokenizer(), precision="fp32")()
    assert caught.value.where == str(file)


@pytest.mark.parametrize(("content", "told"), [('{"prompt": \n', "JSON parse error"), ("", "no data")])
def test_faulty_rows_are_named_with_their_task(tmp_path: Path, content: str, told: str) -> None:
    directory = write_task(tmp_path / "task")
    (directory / "validation.jsonl").write_text(content)
    with pytest.raises(DocumentInvalid, match=told) as caught:
        open_task(directory)
    assert caught.value.where == str(directory / "asked.yaml")


def test_rows_without_a_right_answer_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_task(tmp_path / "task")
    open_task(directory)
    assert "right answer" not in capsys.readouterr().err
    with (directory / "validation.jsonl").open("a") as stream:
        stream.writelines(json.dumps({"prompt": "x?", "gold": gold}) + "\n" for gold in (2, -1))
    open_task(directory)
    assert "2 of 11 rows have no right answer, and count as wrong: 2 is none of" in capsys.readouterr().err
