"""Generated answers: decoding against the harness's own model class, extraction, and tasks from anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance

from shearling.errors import ArtefactMissing, NonFiniteWeights, UsageError
from shearling.evaluation.evaluator import Evaluator, torch_scorer
from shearling.evaluation.generation import generation_batches
from shearling.evaluation.lm_eval_task import GeneratedAnswer, write_lm_eval_tasks
from shearling.evaluation.task import TaskRow, locate_task, write_rows
from tests.support.tiny_models import FAMILIES, tiny_tokenizer
from tests.support.tiny_runs import tiny_network

PROMPTS = (
    "The quick",
    "Report: nation's models are sparse, small and",
    "Is this headline sarcastic? Answer:",
    "Area man wins award for the best headline of the year, ",
    "yes",
)
NUMBER = GeneratedAnswer(pattern=r"-?[0-9][0-9,]*(?:\.[0-9]+)?", ignore=(",", r"\.0*$"), max_new_tokens=12)


def requests(*, prompts=PROMPTS, **options) -> list[Instance]:
    kwargs = {"until": [], "max_gen_toks": 10, "do_sample": False, **options}
    return [
        Instance(request_type="generate_until", doc={}, arguments=(prompt, dict(kwargs)), idx=0, task_name="asked")
        for prompt in prompts
    ]


def stock(model, tokenizer, asked) -> list[str]:
    from lm_eval.models.huggingface import HFLM

    # One row a batch: no padding that could matter.
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1).generate_until(asked, disable_tqdm=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_decoding_equals_the_stock_model_class_one_by_one(family: str) -> None:
    model, tokenizer = FAMILIES[family](), tiny_tokenizer()
    prompts = tuple(prompt.rstrip(" ") for prompt in PROMPTS)
    expected = stock(model, tokenizer, requests(prompts=prompts))
    assert any(expected)
    for batch_size in (1, 3, 64):
        assert torch_scorer(model, tokenizer, batch_size=batch_size).generate_until(requests()) == expected


def test_a_stop_string_ends_the_text_and_is_no_part_of_it() -> None:
    model, tokenizer = FAMILIES["llama"](), tiny_tokenizer()
    free = torch_scorer(model, tokenizer).generate_until(requests())
    stops = [text[3:5] for text in free if len(text) > 5][:2]
    stopped = torch_scorer(model, tokenizer).generate_until(requests(until=stops))
    assert stopped == stock(model, tokenizer, requests(until=stops, prompts=tuple(p.rstrip(" ") for p in PROMPTS)))
    assert stopped != free
    assert not any(stop in text for stop in stops for text in stopped)
    assert all(whole.startswith(text) for whole, text in zip(free, stopped, strict=True))


def test_a_stop_string_that_is_a_special_token_ends_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    said = [*tokenizer.encode(" yes"), tokenizer.pad_token_id, *tokenizer.encode(" no")]
    texts = []
    for until in ([], [tokenizer.pad_token], ["never said", tokenizer.pad_token]):
        tokens = iter(said)

        def step(input_ids, *_, tokens=tokens):
            return torch.nn.functional.one_hot(torch.tensor([next(tokens)] * len(input_ids)), len(tokenizer)).float()

        scorer = torch_scorer(FAMILIES["llama"](), tokenizer)
        monkeypatch.setattr(scorer, "step", step)
        texts.append(scorer.generate_until(requests(prompts=PROMPTS[:2], until=until, max_gen_toks=len(said))))
    assert texts == [[" yes no"] * 2, [" yes"] * 2, [" yes"] * 2]


def test_the_end_of_text_token_ends_it_and_the_limit_holds() -> None:
    model, tokenizer = FAMILIES["llama"](), tiny_tokenizer()
    scorer = torch_scorer(model, tokenizer)
    short, long = (scorer.generate_until(requests(max_gen_toks=limit)) for limit in (3, 10))
    assert all(whole.startswith(text) for whole, text in zip(long, short, strict=True))
    assert short != long
    head = model.get_output_embeddings()
    model.set_output_embeddings(torch.nn.Linear(head.in_features, head.out_features))
    with torch.no_grad():
        model.get_output_embeddings().bias[tokenizer.eos_token_id] = 1e6
    assert torch_scorer(model, tokenizer).generate_until(requests()) == [""] * len(PROMPTS)


def test_prompts_share_batches_with_others_of_like_length() -> None:
    prompts = [[0] * length for length in (2, 9, 3, 8, 4)]
    assert list(generation_batches(prompts, 2, max_tokens=99)) == [[1, 3], [4, 2], [0]]
    assert list(generation_batches(prompts, 9, max_tokens=18)) == [[1, 3], [4, 2, 0]]
    assert list(generation_batches(prompts, 9, max_tokens=4)) == [[1], [3], [4], [2], [0]]
    assert list(generation_batches([], 2, max_tokens=4)) == []


def test_a_long_prompt_loses_its_beginning() -> None:
    model, tokenizer = FAMILIES["llama"](), tiny_tokenizer()
    long = "the lazy dog and " * 80
    kept = tokenizer.decode(tokenizer.encode(long.rstrip())[-246:])
    first, second = torch_scorer(model, tokenizer).generate_until(requests(prompts=(long, kept)))
    assert first == second


def test_what_cannot_be_decoded_greedily_is_refused() -> None:
    scorer = torch_scorer(FAMILIES["llama"](), tiny_tokenizer())
    for options in ({"do_sample": True}, {"temperature": 0.7}, {"num_beams": 4}):
        with pytest.raises(UsageError, match="samples or searches"):
            scorer.generate_until(requests(**options))
    with pytest.raises(UsageError, match="up to 256 tokens, and the model reads 256"):
        scorer.generate_until(requests(max_gen_toks=256))


def test_nan_is_refused_and_bf16_decodes() -> None:
    model, tokenizer = FAMILIES["llama"](), tiny_tokenizer()
    assert any(torch_scorer(model, tokenizer, precision="bf16").generate_until(requests()))
    with torch.no_grad():
        model.get_output_embeddings().weight[7, 0] = float("nan")
    with pytest.raises(NonFiniteWeights, match="NaN"):
        torch_scorer(model, tokenizer).generate_until(requests())


@pytest.mark.parametrize("masked", [True, False])
def test_a_super_network_generates_as_its_active_sub_network(masked: bool) -> None:
    network = tiny_network("llama", masked=masked)
    scorer = torch_scorer(network.model, network.tokenizer)
    texts = []
    for choice in (network.space.maximal(), network.space.minimal(), network.space.maximal()):
        network.activate(choice)
        with network.materialised():
            texts.append(scorer.generate_until(requests()))
    assert texts[0] == texts[2] != texts[1]


def write_questions(directory: Path, rows: list[TaskRow], generated: GeneratedAnswer) -> Path:
    directory.mkdir()
    for split in ("validation", "test"):
        write_rows(directory, split, rows)
    write_lm_eval_tasks(directory, "sums", multiple_choice=False, generated=generated)
    return directory


def question(number: int, answer: str) -> TaskRow:
    prompt = f"Question {number}\n"
    return TaskRow(
        id=f"{number:064d}", prompt=prompt, choices=None, gold=None, completion=answer, text=prompt, answer=answer
    )


LAST_NUMBER = [
    ("the sum is 12, so 12", "12", True),
    ("3 + 4 = 7", "7", True),
    ("3 + 4 = 7", "3", False),
    ("it falls to -5", "-5", True),
    ("it falls to -5", "5", False),
    ("that is $1,234", "1234", True),
    ("that is 1234", "1,234", True),
    ("The answer is 576.", "576.0", True),
    ("The answer is 576.0", "576", True),
    ("The answer is 57.6", "576", False),
    ("I do not know", "0", False),
    ("", "0", False),
]
FIRST_CHOICE = [
    ("the correct answer is answer2, not answer3", "answer2", True),
    ("answer3 rather than answer2", "answer2", False),
    ("none of them", "answer2", False),
]
WHOLE = [(" Paris\n", "Paris", True), ("Paris, France", "Paris", False)]
DATES = [("2024-01-05", "2024-01-05", True), ("2024-01-05 00:00:00", "2024-01-06", False)]


@pytest.mark.parametrize(
    ("cases", "generated"),
    [
        (LAST_NUMBER, NUMBER),
        (FIRST_CHOICE, GeneratedAnswer(pattern="answer[1-5]", match="first")),
        (WHOLE, GeneratedAnswer()),
        (DATES, GeneratedAnswer()),
    ],
)
def test_answers_are_found_in_text(cases, generated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 22."""
    rows = [question(number, gold) for number, (_, gold, _) in enumerate(cases)]
    evaluator = Evaluator("sums", split="test", include_path=write_questions(tmp_path / "task", rows, generated))
    scorer = torch_scorer(FAMILIES["llama"](), tiny_tokenizer())
    said = {row.prompt: text for row, (text, _, _) in zip(rows, cases, strict=True)}
    monkeypatch.setattr(scorer, "generate_until", lambda asked, **_: [said[request.args[0]] for request in asked])
    found = evaluator.measure(scorer)
    assert dict(zip([case[:2] for case in cases], found.answers, strict=True)) == {
        (text, gold): float(right) for text, gold, right in cases
    }
    assert found.loss is None


def test_a_generated_answer_is_what_the_model_says(tmp_path: Path) -> None:
    model, tokenizer = FAMILIES["llama"](), tiny_tokenizer()
    rows = [question(number, "x") for number in range(6)]
    texts = torch_scorer(model, tokenizer).generate_until(
        requests(prompts=tuple(row.prompt for row in rows), max_gen_toks=12)
    )
    answered = [
        row.model_copy(update={"answer": text.strip() if place % 2 else "something else"})
        for place, (row, text) in enumerate(zip(rows, texts, strict=True))
    ]
    directory = write_questions(tmp_path / "task", answered, GeneratedAnswer(max_new_tokens=12))
    evaluator = Evaluator("sums", split="validation", include_path=directory)
    seen: list[int] = []
    found = evaluator.on_torch(model, tokenizer, precision="fp32", on_rows=seen.append)()
    assert found.answers == (0.0, 1.0, 0.0, 1.0, 0.0, 1.0)
    assert sum(seen) == 6


def write_own_task(directory: Path, name: str, *, splits: tuple[str, ...] = ("validation",)) -> Path:
    """A task file as a user writes it, beside its data."""
    directory.mkdir(exist_ok=True)
    rows = [{"question": f"Is {number} even? Answer:", "label": number % 2} for number in range(6)]
    (directory / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    files = "".join(f"    {split}: rows.jsonl\n" for split in splits)
    keys = "".join(f"{'training' if split == 'train' else split}_split: {split}\n" for split in splits)
    path = directory / f"{name}.yaml"
    path.write_text(
        f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n{files}{keys}"
        "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: [' yes', ' no']\n"
        "doc_to_target: label\ntarget_delimiter: ''\nmetric_list:\n  - metric: acc\n"
    )
    return path


def test_a_task_file_and_a_directory_with_one_are_tasks(tmp_path: Path) -> None:
    file = write_own_task(tmp_path / "own", "even")
    for given in (file, file.parent):
        found = locate_task(str(given))
        assert (found.name, found.directory) == ("even", file.parent)
        evaluator = Evaluator(found.name, split="validation", include_path=found.directory)
        assert evaluator.on_torch(FAMILIES["llama"](), tiny_tokenizer(), precision="fp32")().n == 6
    second = write_own_task(file.parent, "odd")
    assert locate_task(str(second)).name == "odd"
    with pytest.raises(UsageError, match="several tasks here: even, odd"):
        locate_task(str(file.parent))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactMissing, match="no task here"):
        locate_task(str(tmp_path / "empty"))
    with pytest.raises(UsageError, match="defines no task"):
        locate_task(str(file.parent / "rows.jsonl"))


def test_a_split_that_a_task_lacks_is_never_replaced_by_another(tmp_path: Path) -> None:
    found = locate_task(str(write_own_task(tmp_path / "own", "even", splits=("train", "test"))))
    with pytest.raises(UsageError, match="no validation split: it has test, train") as caught:
        Evaluator(found.name, split="validation", include_path=found.directory)
    assert "--split test" in str(caught.value.remedy)
    assert Evaluator(found.name, split="test", include_path=found.directory).rows == 6
