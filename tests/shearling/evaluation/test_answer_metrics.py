"""F1 and ROUGE of generated answers: against the definitions, and through the harness as tasks name them."""

from __future__ import annotations

import itertools
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from transformers.data.metrics.squad_metrics import compute_f1

from shearling.evaluation import answer_metrics
from shearling.evaluation.evaluator import Evaluator, torch_scorer
from shearling.evaluation.harness_tasks import load_harness_task
from shearling.evaluation.lm_eval_task import GeneratedAnswer, write_lm_eval_tasks
from shearling.evaluation.task import TaskRow, write_rows
from tests.support.tiny_models import FAMILIES, tiny_tokenizer

WORDS = st.lists(st.sampled_from(["fox", "dog", "red", "barn", "quick"]), min_size=1, max_size=7)


def f_measure(right: int, given_: int, shared: float) -> float:
    return 0.0 if not shared else 2 * (shared / given_) * (shared / right) / (shared / given_ + shared / right)


def longest_common(left, right) -> int:
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, one in enumerate(left):
        for j, other in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if one == other else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(WORDS, WORDS)
def test_metrics_are_what_their_names_say(reference, answer):
    arguments = [" ".join(reference)], [" ".join(answer)]
    shared = sum(min(reference.count(word), answer.count(word)) for word in set(reference))
    sizes = len(reference), len(answer)
    assert answer_metrics.f1(*arguments) == pytest.approx(f_measure(*sizes, shared))
    assert answer_metrics.rouge1(*arguments) == pytest.approx(f_measure(*sizes, shared))
    assert answer_metrics.rougeL(*arguments) == pytest.approx(f_measure(*sizes, longest_common(reference, answer)))
    pairs = [list(itertools.pairwise(words)) for words in (reference, answer)]
    both = sum(min(pairs[0].count(pair), pairs[1].count(pair)) for pair in set(pairs[0]))
    assert answer_metrics.rouge2(*arguments) == pytest.approx(f_measure(len(pairs[0]), len(pairs[1]), both))


ROUGE = ("rouge1", "rouge2", "rougeL")
ASCII = st.text(st.characters(max_codepoint=127))
LATIN = st.text(st.characters(max_codepoint=0x24F) | st.sampled_from("“”‘’–—…€"))


@given(ASCII, ASCII)
def test_rouge_of_english_is_that_of_rouge_score(reference, answer):
    expected = RougeScorer(ROUGE).score(reference, answer)
    assert {name: getattr(answer_metrics, name)([reference], [answer]) for name in ROUGE} == {
        name: score.fmeasure for name, score in expected.items()
    }


@given(LATIN, LATIN)
def test_f1_of_latin_letters_is_that_of_squad(reference, answer):
    assert answer_metrics.f1([reference], [answer]) == compute_f1(reference, answer)


@pytest.mark.parametrize(
    ("reference", "answer", "shared", "sizes"),
    [
        ("Привет, мир!", "мир", 1, (2, 1)),
        ("η γάτα κοιμάται", "Η ΓΆΤΑ τρέχει", 2, (3, 3)),
        ("हिन्दी भाषा", "हिन्दी में", 1, (2, 2)),
        ("안녕하세요 여러분", "안녕하세요", 1, (2, 1)),
        ("我在北京大学。", "北京", 2, (6, 2)),
        ("東京タワー、333メートル", "タワーは333 メートル", 8, (10, 9)),
        ("ไทย", "ไท", 2, (3, 2)),
        ("l'élan", "lan", 0, (2, 1)),
    ],
    ids=["russian", "greek", "hindi", "korean", "chinese", "japanese", "thai", "french"],
)
def test_words_of_every_script_are_counted(reference, answer, shared, sizes):
    for name in ("f1", "rouge1"):
        score = getattr(answer_metrics, name)
        assert score([reference], [answer]) == pytest.approx(f_measure(*sizes, shared)), name
        assert score([reference], [reference]) == 1
    assert answer_metrics.rougeL([reference], [reference]) == 1


def test_what_is_ignored_is_removed_from_both():
    arguments = ["the red fox!"], ["red dog fox"]
    assert answer_metrics.f1(*arguments) == pytest.approx(0.8)
    assert answer_metrics.f1(*arguments, regexes_to_ignore=["dog"]) == 1
    assert answer_metrics.rouge1(*arguments, regexes_to_ignore=["dog ", "the "]) == 1


CASES = [("Answer: the red fox", "the red fox"), ("Answer: a red dog", "red fox"), ("no idea", "blue"), ("", "x")]


@pytest.mark.parametrize("metric", ["f1", "rouge1", "rouge2", "rougeL"])
def test_the_harness_scores_what_the_filter_finds(metric, tmp_path, monkeypatch):
    rows = [
        TaskRow(id=f"{place:064d}", prompt=f"Q{place}", choices=None, gold=None, completion=gold, text="t", answer=gold)
        for place, (_, gold) in enumerate(CASES)
    ]
    for split in ("validation", "test"):
        write_rows(tmp_path, split, rows)
    generated = GeneratedAnswer(pattern="Answer: (.*)", metric=metric, max_new_tokens=8)
    write_lm_eval_tasks(tmp_path, "asked", multiple_choice=False, generated=generated)
    evaluator = Evaluator("asked", split="test", include_path=tmp_path)
    scorer = torch_scorer(FAMILIES["llama"](), tiny_tokenizer())
    said = {row.prompt: text for row, (text, _) in zip(rows, CASES, strict=True)}
    monkeypatch.setattr(scorer, "generate_until", lambda asked, **_: [said[request.args[0]] for request in asked])
    found = evaluator.measure(scorer)
    score = getattr(answer_metrics, metric)
    expected = [score(["the red fox"], ["the red fox"]), score(["red fox"], ["a red dog"]), 0, 0]
    assert found.answers == pytest.approx(expected)
    assert found.accuracy == pytest.approx(sum(expected) / 4)
    assert found.answers[0] == 1


def test_exact_match_stays_plain_json(tmp_path):
    write_lm_eval_tasks(tmp_path, "asked", multiple_choice=False, generated=GeneratedAnswer())
    config = json.loads((tmp_path / "asked_test.yaml").read_text())
    assert config["metric_list"][0]["metric"] == "exact_match"
    # Whatever a user's pattern is, it stays a text.
    hostile = GeneratedAnswer(pattern='"metric": "x', ignore=("!function os.system",), metric="f1")
    write_lm_eval_tasks(tmp_path, "asked", multiple_choice=False, generated=hostile)

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: ("function", node.value))
    config = yaml.load((tmp_path / "asked_test.yaml").read_text(), Loader=Loader)
    assert config["metric_list"][0]["metric"] == ("function", "shearling.evaluation.answer_metrics.f1")
    assert config["metric_list"][0]["regexes_to_ignore"] == ["!function os.system"]
    assert config["filter_list"][0]["filter"][0]["regex_pattern"] == '"metric": "x'


def test_characters_beyond_the_basic_plane_reach_the_harness(tmp_path):
    """JSON writes them as pairs of surrogates, which YAML refuses or reads as two characters."""
    pattern, stop = "👉 (.*)", ("😀", "\\ud83d\\ude00")
    row = TaskRow(id="0", prompt="fox", choices=None, gold=None, completion=" dog", text="", answer="dog")
    write_rows(tmp_path, "validation", [row])
    asked = GeneratedAnswer(pattern=pattern, stop=stop, ignore=("🙂",))
    write_lm_eval_tasks(tmp_path, "told", multiple_choice=False, generated=asked)
    task = load_harness_task("told", split="validation", include_path=tmp_path, name="told_validation")
    config = task.dump_config()
    assert tuple(config["generation_kwargs"]["until"]) == stop
    assert any(part.get("regex_pattern") == pattern for part in config["filter_list"][0]["filter"])
    assert "🙂" in str(config["metric_list"])
    text = (tmp_path / "told_validation.yaml").read_text()
    assert text.isascii()
    assert yaml.safe_load(text.replace("!function", "")) is not None
