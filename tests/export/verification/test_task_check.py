"""The task gate: the same rows, answered by the file and by the merged model."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.verification.task_check import MOST_GENERATED_ROWS, TaskReference, ask_reference
from shearling.evaluation.evaluator import Evaluation
from shearling.evaluation.lm_eval_task import GeneratedAnswer, write_lm_eval_tasks
from shearling.evaluation.task import TaskFacts, TaskRow, write_rows
from shearling.strict_json import write_document
from tests.support.tiny_models import FAMILIES, tiny_tokenizer


def evaluation(answers: list[float]) -> Evaluation:
    return Evaluation(
        task="t_validation",
        n=len(answers),
        accuracy=sum(answers) / len(answers),
        accuracy_stderr=None,
        interval=(0.0, 1.0),
        loss=None,
        bits_per_byte=None,
        seconds=0.0,
        rows_sha256="",
        answers=tuple(answers),
        losses=None,
    )


@pytest.mark.parametrize(
    ("lost", "won", "passes"),
    [
        (0, 0, True),
        (20, 20, True),  # other rows, and as many
        (12, 6, True),  # 1.5 points less, which chance explains
        (40, 6, False),  # 8.5 points less
    ],
)
def test_what_chance_does_not_explain_is_refused(lost: int, won: int, passes: bool) -> None:
    reference = [1.0] * 300 + [0.0] * 100
    answers = [0.0] * lost + [1.0] * (300 - lost) + [1.0] * won + [0.0] * (100 - won)
    check = TaskReference(None, evaluation(reference)).check("x", evaluation(answers))
    assert (check.violation is None) == passes
    assert check.n == 400
    assert check.difference == pytest.approx((won - lost) / 400)
    assert check.interval[0] < check.difference < check.interval[1]
    assert (check.accuracy, check.reference_accuracy) == (pytest.approx(0.75 + check.difference), 0.75)


def _write_task(directory: Path, rows: int, *, generated: bool) -> None:
    made = [
        TaskRow(
            id=str(number),
            prompt=f"Report {number}: fox",
            choices=None if generated else (" no", " yes"),
            gold=None if generated else number % 2,
            completion=" yes",
            text="",
            answer="yes" if generated else None,
        )
        for number in range(rows)
    ]
    write_rows(directory, "validation", made)
    answer = GeneratedAnswer(pattern=None, match="last", ignore=(), max_new_tokens=2, stop=()) if generated else None
    write_lm_eval_tasks(directory, "tiny", multiple_choice=not generated, generated=answer)
    facts = TaskFacts(name="tiny", multiple_choice=not generated, rows={"validation": rows})
    write_document(directory / "task.json", facts)


def test_the_reference_answers_validation_rows_and_fewer_where_it_must_write(tmp_path: Path) -> None:
    model, tokenizer = FAMILIES["llama"]().eval(), tiny_tokenizer()
    assert ask_reference(model, tokenizer, tmp_path, head="language_model") is None
    for generated, asked in ((False, 60), (True, MOST_GENERATED_ROWS)):
        directory = tmp_path / str(generated)
        directory.mkdir()
        _write_task(directory, 60, generated=generated)
        found = ask_reference(model, tokenizer, directory, head="language_model")
        assert found is not None
        assert found.evaluation.n == asked
        assert found.evaluator.task.endswith("validation")
