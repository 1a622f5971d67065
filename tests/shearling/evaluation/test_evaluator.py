"""Accuracy and bits per byte against independent computations, on real models and real runtimes."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import openvino
import pytest
import torch
from lm_eval.api.instance import Instance
from tokenizers.processors import TemplateProcessing

from shearling.errors import ArtefactMissing, ModelUnsupported, NonFiniteWeights, UsageError
from shearling.evaluation import harness_tasks, lm_eval_task
from shearling.evaluation.causal_scorer import ROLLING_WINDOW, CausalScorer
from shearling.evaluation.confidence import accuracies_differ, wilson_interval
from shearling.evaluation.evaluator import Evaluation, Evaluator, torch_scorer
from shearling.evaluation.given_model import find_given_model
from shearling.evaluation.lm_eval_task import write_lm_eval_tasks, write_table
from shearling.evaluation.onnx_scorer import OnnxScorer
from shearling.evaluation.openvino_scorer import OpenVINOScorer
from shearling.evaluation.scoreboard import score_models
from shearling.evaluation.task import TaskFacts, TaskRow, locate_task, read_rows, row_line, write_rows
from shearling.kernel.onnx_runtime_extension import open_session
from shearling.kernel.openvino_core import openvino_core
from shearling.kernel.openvino_extension import compile_ir
from shearling.strict_json import write_document
from shearling.target import Target
from tests.support.deployments import shared_export
from tests.support.fused_models import FUSED
from tests.support.once_per_run import writable_copy
from tests.support.tiny_models import FAMILIES, IM_START, PAD, beginning_tokenizer, tiny_tokenizer
from tests.support.tiny_runs import tiny_network

CHOICES = ((" no", " yes"), (" sarcastic", " not sarcastic at all"), (" yes", " yes, sure", " no"))


def write_task(directory: Path, *, multiple_choice: bool = True, rows: int = 23) -> Path:
    """Rows of very different lengths; choices of one and of several tokens."""
    directory.mkdir()
    for split, offset in (("validation", 0), ("test", 1000)):
        made = []
        for number in range(offset, offset + rows):
            text = f"Report {number}: " + "the lazy fox is fast; " * (number % 5)
            choices = CHOICES[number % 3] if multiple_choice else None
            gold = number % 2 if multiple_choice else None
            completion = choices[gold] if choices and gold is not None else " yes"
            made.append(
                TaskRow(
                    id=f"{number:064d}",
                    prompt=f"{text}\nSarcastic:",
                    choices=choices,
                    gold=gold,
                    completion=completion,
                    text=text,
                )
            )
        write_rows(directory, split, made)
    write_lm_eval_tasks(directory, "headlines", multiple_choice=multiple_choice)
    return directory


def evaluate(model, tokenizer, *, precision="fp32", **options) -> Evaluation:
    return Evaluator(**{"bits_per_byte": True, **options}).on_torch(model, tokenizer, precision=precision)()


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Path:
    return write_task(tmp_path_factory.mktemp("task") / "task")


def log_likelihood(model, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """One continuation alone, in a batch of one, all logits, float64 softmax."""
    ids = torch.tensor([context + continuation])
    with torch.no_grad():
        probabilities = model(input_ids=ids).logits[0].double().log_softmax(-1)
    spots = range(len(context) - 1, len(context) + len(continuation) - 1)
    greedy = all(int(probabilities[spot].argmax()) == token for spot, token in zip(spots, continuation, strict=True))
    return sum(float(probabilities[spot, token]) for spot, token in zip(spots, continuation, strict=True)), greedy


def continuation_of(tokenizer, prompt: str, choice: str) -> tuple[list[int], list[int]]:
    whole, context = tokenizer.encode(prompt + choice), tokenizer.encode(prompt)
    return context, whole[len(context) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_accuracy_loss_and_bits_per_byte_equal_an_independent_computation(family: str, task: Path) -> None:
    model, tokenizer = FAMILIES[family](), tiny_tokenizer()
    rows = read_rows(task, "validation")
    right, losses, bits, size_bytes = [], [], 0.0, 0
    for row in rows:
        scores = [
            log_likelihood(model, *continuation_of(tokenizer, row.prompt, choice))[0] for choice in row.choices or ()
        ]
        right.append(float(max(range(len(scores)), key=scores.__getitem__) == row.gold))
        losses.append(-scores[row.gold or 0])
        bits -= log_likelihood(model, [tokenizer.eos_token_id], tokenizer.encode(row.text))[0] / math.log(2)
        size_bytes += len(row.text.encode())
    found = evaluate(model, tokenizer, task="headlines", split="validation", include_path=task, batch_size=7)
    assert found.answers == tuple(right)
    assert found.accuracy == pytest.approx(sum(right) / len(right), abs=1e-12)
    share, n = sum(right) / len(right), len(right)
    assert found.accuracy_stderr == pytest.approx(math.sqrt(share * (1 - share) / (n - 1)))
    assert found.interval == wilson_interval(found.accuracy, n)
    assert found.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(bits / size_bytes, rel=1e-5)
    assert (found.task, found.n) == ("headlines_validation", len(rows))


def test_accuracy_without_choices_is_greedy_exact_match(tmp_path: Path) -> None:
    model, tokenizer = FAMILIES["llama"](), tiny_tokenizer()
    directory = write_task(tmp_path / "task", multiple_choice=False, rows=4)
    rows = read_rows(directory, "test")
    # Make one completion the model's own greedy choice.
    with torch.no_grad():
        token = int(model(input_ids=torch.tensor([tokenizer.encode(rows[0].prompt)])).logits[0, -1].argmax())
    greedy = tokenizer.decode([token])
    assert continuation_of(tokenizer, rows[0].prompt, greedy)[1] == [token], (
        "choose another prompt: the completion merges with it"
    )
    write_rows(directory, "test", [rows[0].model_copy(update={"completion": greedy}), *rows[1:]])
    write_table(directory, "test")
    found = evaluate(model, tokenizer, task="headlines", split="test", include_path=directory)
    expected = [
        log_likelihood(model, *continuation_of(tokenizer, row.prompt, row.completion))
        for row in read_rows(directory, "test")
    ]
    assert found.answers == tuple(float(exact) for _, exact in expected)
    assert found.answers[0] == 1.0
    assert found.loss == pytest.approx(-sum(score for score, _ in expected) / 4, rel=1e-5)


DATED = TaskRow(
    id="0", prompt="2024-01-05", choices=("2024-01-06", "2024-01-07"), gold=1, completion="2024-01-07", text="09:30"
)


@pytest.mark.parametrize(
    "row",
    [
        DATED,
        DATED.model_copy(update={"choices": None, "gold": None}),
        DATED.model_copy(update={"answer": "2024-01-07", "tail": "\n", "learnt": ((0, 3), (4, 10))}),
    ],
)
def test_the_harness_reads_every_text_as_it_is_written(
    row: TaskRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dates, too: by the harness alone, and by us."""
    import datasets
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(lm_eval_task, "TABLE_BATCH", 2)
    rows = [row.model_copy(update={"id": f"{number}"}) for number in range(3)]
    write_rows(tmp_path, "test", rows)
    write_lm_eval_tasks(tmp_path, "dates", multiple_choice=row.choices is not None)
    monkeypatch.chdir(tmp_path)
    alone = TaskManager(include_path=".", include_defaults=False).load(["dates_test"])["tasks"]["dates_test"]
    ours = Evaluator("dates", split="test", include_path=tmp_path)._answers
    for task in (alone, ours):
        assert [TaskRow.model_validate_json(json.dumps(doc)) for doc in task.eval_docs] == rows
        assert set(task.eval_docs.column_names) == set(json.loads(row_line(row)))


def test_batch_size_changes_nothing_but_rounding(task: Path) -> None:
    model, tokenizer = FAMILIES["mistral"](), tiny_tokenizer()
    evaluator = Evaluator("headlines", split="test", include_path=task, bits_per_byte=True)
    found = [evaluator.measure(torch_scorer(model, tokenizer, batch_size=size)) for size in (1, 3, 64)]
    for other in found[1:]:
        assert other.answers == found[0].answers
        assert other.loss == pytest.approx(found[0].loss, rel=1e-6)
        assert other.bits_per_byte == pytest.approx(found[0].bits_per_byte, rel=1e-6)


def test_a_repetition_is_bit_identical(task: Path) -> None:
    model, tokenizer = FAMILIES["llama"](), tiny_tokenizer()
    evaluator = Evaluator("headlines", split="test", include_path=task, bits_per_byte=True)
    scorer = torch_scorer(model, tokenizer)
    first, second = (without_time(evaluator.measure(scorer)) for _ in range(2))
    assert first == second


def without_time(evaluation: Evaluation) -> dict[str, object]:
    return {name: value for name, value in vars(evaluation).items() if name != "seconds"}


def test_equal_to_the_stock_model_class_of_the_harness(task: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = FAMILIES["llama"](), tiny_tokenizer()
    evaluator = Evaluator("headlines", split="test", include_path=task, bits_per_byte=True)
    stock = evaluator.measure(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8))  # type: ignore[arg-type] # the harness's own
    ours = evaluator.measure(torch_scorer(model, tokenizer))
    assert ours.answers == stock.answers
    assert ours.loss == pytest.approx(stock.loss, rel=1e-5)
    assert ours.bits_per_byte == pytest.approx(stock.bits_per_byte, rel=1e-5)


def test_prefixes_share_one_forward_and_rows_are_sorted_by_length() -> None:
    from shearling.evaluation.causal_scorer import batch_rows, plan_rows

    requests = [
        (None, [1, 2], [3]),
        (None, [1, 2], [4]),
        (None, [1, 2], [3, 5]),
        (None, [7], [8]),
        (None, [1, 2, 3], [9]),
    ]
    rows = plan_rows(requests, max_length=10)
    assert [row.input_ids for row in rows] == [(1, 2, 3), (7,)]
    assert sorted(item.index for item in rows[0].scored) == [0, 1, 2, 4]
    shapes = [
        [len(batch) for batch in batch_rows(rows, size, max_tokens=most, whole=False)]
        for size, most in ((1, 99), (2, 99), (2, 5), (2, 1))
    ]
    assert shapes == [[1, 1], [2], [1, 1], [1, 1]]
    (cut,) = plan_rows([(None, list(range(20)), [20, 21])], max_length=5)
    assert cut.input_ids == (16, 17, 18, 19, 20)
    assert cut.first == 3


def test_long_texts_are_scored_in_windows(tmp_path: Path) -> None:
    model, tokenizer = FAMILIES["llama"](), tiny_tokenizer()
    directory = write_task(tmp_path / "task", rows=1)
    (row,) = read_rows(directory, "test")
    write_rows(directory, "test", [row.model_copy(update={"text": "The lazy fox; " * 150})])
    write_table(directory, "test")
    found = evaluate(model, tokenizer, task="headlines", split="test", include_path=directory)
    assert found.bits_per_byte is not None
    assert math.isfinite(found.bits_per_byte)


def test_limit_takes_the_first_rows(task: Path) -> None:
    model, tokenizer = FAMILIES["llama"](), tiny_tokenizer()
    whole = evaluate(model, tokenizer, task="headlines", split="test", include_path=task)
    part = evaluate(model, tokenizer, task="headlines", split="test", include_path=task, limit=5)
    assert part.answers == whole.answers[:5]
    assert part.rows_sha256 != whole.rows_sha256


def test_some_rows_answer_as_they_do_among_all_in_the_order_asked_for(task: Path) -> None:
    model, tokenizer = FAMILIES["llama"](), tiny_tokenizer()
    evaluator = Evaluator("headlines", split="test", include_path=task)
    measure = evaluator.on_torch(model, tokenizer, precision="fp32")
    whole, places = measure(), [17, 3, 0, 22, 4]
    part = measure(places)
    assert whole.losses is not None
    assert part.losses is not None
    assert part.answers == tuple(whole.answers[place] for place in places)
    assert part.losses == pytest.approx([whole.losses[place] for place in places], rel=1e-5)
    assert (part.n, part.accuracy, part.loss) == (5, sum(part.answers) / 5, math.fsum(part.losses) / 5)
    assert whole.loss == math.fsum(whole.losses) / len(whole.losses)
    assert len({whole.rows_sha256, part.rows_sha256, measure(sorted(places)).rows_sha256}) == 3


def test_rows_are_told_apart_by_their_content(task: Path, tmp_path: Path) -> None:
    digests = {
        name: Evaluator("headlines", split="test", include_path=directory).row_digests
        for name, directory in (("one", task), ("again", write_task(tmp_path / "task", rows=25)))
    }
    assert len(set(digests["one"])) == 23
    assert digests["again"][:23] == digests["one"]


def test_a_task_is_known_by_its_content_wherever_it_lies(task: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(task, tmp_path / "moved")
    digests = [Evaluator("headlines", split="test", include_path=directory).sha256 for directory in (task, moved)]
    file = moved / "headlines_test.yaml"
    file.write_text(file.read_text().replace('"doc_to_text": "prompt"', '"doc_to_text": "text"'))
    digests.append(Evaluator("headlines", split="test", include_path=moved).sha256)
    assert digests[0] == digests[1] != digests[2]


def test_bf16_is_near_float32_and_leaves_the_model_alone(task: Path) -> None:
    model, tokenizer = FAMILIES["llama_tied_gqa"](), tiny_tokenizer()
    evaluator = Evaluator("headlines", split="test", include_path=task, bits_per_byte=True)
    exact = evaluator.measure(torch_scorer(model, tokenizer))
    rounded = evaluator.measure(torch_scorer(model, tokenizer, precision="bf16"))
    assert rounded.loss != exact.loss
    assert rounded.loss == pytest.approx(exact.loss, rel=2e-2)
    assert "forward" not in vars(model.get_output_embeddings())
    assert without_time(evaluator.measure(torch_scorer(model, tokenizer))) == without_time(exact)


@pytest.mark.parametrize("masked", [True, False])
def test_a_super_network_scores_as_its_active_sub_network(masked: bool, task: Path) -> None:
    network = tiny_network("llama", masked=masked)
    evaluator = Evaluator("headlines", split="validation", include_path=task)
    scorer = torch_scorer(network.model, network.tokenizer)
    losses = []
    for choice in (network.space.maximal(), network.space.minimal(), network.space.maximal()):
        network.activate(choice)
        loose = evaluator.measure(scorer)
        with network.materialised():
            held = evaluator.measure(scorer)
        assert held.loss == pytest.approx(loose.loss, rel=1e-6)
        losses.append(held.loss)
    assert losses[0] == losses[2] != losses[1]


def to_be_continued() -> list[Instance]:
    return [
        Instance("generate_until", doc={}, arguments=(prompt, {"until": ["."], "max_gen_toks": 9}), idx=0)
        for prompt in ("The quick", "Report: nation's models are sparse, small and fast;", "yes")
    ]


def test_a_text_is_scored_by_its_own_tokens_where_the_tokenizer_puts_one_before_it() -> None:
    model, tokenizer = FAMILIES["llama"](), beginning_tokenizer()
    text = "the lazy fox is fast; " * 3
    own = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.encode(text) == [tokenizer.bos_token_id, *own]
    expected, _ = log_likelihood(model, [tokenizer.bos_token_id], own)
    (found,) = torch_scorer(model, tokenizer).loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    assert found == pytest.approx(expected, rel=1e-5)


def test_no_token_that_the_tokenizer_puts_before_a_text_is_scored() -> None:
    """There may be several, and none of them that of `bos_token`, as of GLM; they leave a window less room."""
    model, tokenizer = FAMILIES["llama"](), tiny_tokenizer()
    before = tokenizer.convert_tokens_to_ids([PAD, IM_START])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{PAD} {IM_START} $A", special_tokens=list(zip((PAD, IM_START), before, strict=True))
    )
    scorer = torch_scorer(model, tokenizer)
    assert scorer.prefix_token_id not in before
    room = scorer.max_length - 1
    for repeats in (3, 80):
        text = "the lazy fox is fast; " * repeats
        own = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text) == [*before, *own]
        assert (len(own) > 2 * room) is (repeats == 80)
        expected, _ = log_likelihood(model, before, own[:room])
        for start in range(room, len(own), room):
            end = min(start + room, len(own))
            expected += log_likelihood(model, own[end - room - 1 : start], own[start:end])[0]
        (found,) = scorer.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
        assert found == pytest.approx(expected, rel=1e-5)


def test_rolling_windows_are_short_and_prompts_are_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = FAMILIES["llama"](), tiny_tokenizer()
    model.config.max_position_embeddings = 8192
    scorer, lengths = torch_scorer(model, tokenizer), []
    compute = scorer.logits_at

    def watched(input_ids: torch.Tensor, places: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        lengths.append(input_ids.shape[1])
        return compute(input_ids, places, positions)

    monkeypatch.setattr(scorer, "logits_at", watched)
    text = "The lazy fox is fast; " * 600
    assert 2 * ROLLING_WINDOW < len(tokenizer(text)["input_ids"]) < 8192
    scorer.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    assert max(lengths) == ROLLING_WINDOW
    scorer.loglikelihood([Instance("loglikelihood", {}, (text, " yes"), 0)])
    assert lengths[-1] > 2 * ROLLING_WINDOW


def check_that_long_texts_are_cut_alike(deployed: CausalScorer, trained: CausalScorer) -> None:
    """The model reads 256 tokens, and these texts have more."""
    text = "The lazy fox is fast; " * 80
    assert len(trained.tok_encode(text)) > 2 * trained.max_length == 512
    whole = [Instance("loglikelihood_rolling", {}, (text,), 0)]
    assert deployed.loglikelihood_rolling(whole) == pytest.approx(trained.loglikelihood_rolling(whole), rel=1e-4)
    scored = [Instance("loglikelihood", {}, (text, choice), index) for index, choice in enumerate((" yes", " no"))]
    (first, second), expected = (scorer.loglikelihood(scored) for scorer in (deployed, trained))
    assert (first[0], second[0]) == pytest.approx([score for score, _ in expected], rel=1e-4)
    continued = [Instance("generate_until", {}, (text, {"until": ["."], "max_gen_toks": 9}), 0)]
    assert deployed.generate_until(continued) == trained.generate_until(continued)


def test_openvino_scores_as_torch(task: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    given_model = writable_copy(shared_export(tmp_path_factory) / "openvino", tmp_path / "given")
    properties = {
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }
    tokenizer = tiny_tokenizer()
    xml = given_model / "openvino_model.xml"
    evaluator = Evaluator("headlines", split="test", include_path=task, bits_per_byte=True, batch_size=5)
    deployed = evaluator.on_openvino(compile_ir(xml, properties=properties), tokenizer, max_length=256)()
    trained = evaluate(FAMILIES["llama_tied_gqa"](), tokenizer, task="headlines", split="test", include_path=task)
    assert deployed.answers == trained.answers
    assert deployed.loss == pytest.approx(trained.loss, rel=1e-4)
    assert deployed.bits_per_byte == pytest.approx(trained.bits_per_byte, rel=1e-4)
    scorers = (
        OpenVINOScorer(compile_ir(xml, properties=properties), tokenizer, max_length=256, batch_size=2),
        torch_scorer(FAMILIES["llama_tied_gqa"](), tokenizer),
    )
    generated, expected = (scorer.generate_until(to_be_continued()) for scorer in scorers)
    assert generated == expected
    assert all(expected)

    with find_given_model(Target(given_model, properties=properties)).load("fp32") as given:
        check_that_long_texts_are_cut_alike(given.scorer(), scorers[1])
    facts = TaskFacts(name="headlines", multiple_choice=True, rows={"validation": 23, "test": 23})
    write_document(task / "task.json", facts)
    tasks = [locate_task(str(task))]
    (score,) = score_models([given_model], tasks=tasks, split="test").scores
    assert score.n == trained.n
    # Nothing certifies its zeros, so nothing is said of them.
    assert score.sparsity is None
    ir = openvino_core().read_model(xml)
    ir.set_rt_info("0.500000", ["sparsity", "share"])
    (tmp_path / "pruned").mkdir()
    openvino.save_model(ir, tmp_path / "pruned" / xml.name, compress_to_fp16=False)
    for file in given_model.glob("*.json"):
        shutil.copy(file, tmp_path / "pruned")
    (score,) = score_models([tmp_path / "pruned"], tasks=tasks, split="test").scores
    assert score.sparsity == 0.5

    xml.write_text("<net")
    with pytest.raises(ModelUnsupported, match="cannot compile"):
        score_models([given_model], tasks=tasks, split="test")


@pytest.mark.parametrize("family", ["llama_tied_gqa", "bloom", "fused"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_onnx_runtime_scores_and_continues_as_torch(family: str, task: Path, tmp_path: Path) -> None:
    from export.formats.onnx import MODEL_ONNX, write_onnx
    from export.formats.onnx_genai import write_onnx_genai
    from tests.support.exported_files import stored_as

    fused = family == "fused"
    model, tokenizer = FUSED["mistral"]() if fused else FAMILIES[family](), tiny_tokenizer()
    directory = tmp_path / ("onnx-genai" if fused else "onnx")
    (write_onnx_genai if fused else write_onnx)(model, tokenizer, directory, stored_as("fp32"))
    session = open_session(directory / MODEL_ONNX)
    evaluator = Evaluator("headlines", split="test", include_path=task, bits_per_byte=True, batch_size=5)
    deployed = evaluator.on_onnx(session, tokenizer, max_length=256)()
    trained = evaluate(model, tokenizer, task="headlines", split="test", include_path=task)
    assert deployed.answers == trained.answers
    assert deployed.loss == pytest.approx(trained.loss, rel=1e-4)
    assert deployed.bits_per_byte == pytest.approx(trained.bits_per_byte, rel=1e-4)
    scorers = OnnxScorer(session, tokenizer, max_length=256, batch_size=2), torch_scorer(model, tokenizer)
    generated, expected = (scorer.generate_until(to_be_continued()) for scorer in scorers)
    assert generated == expected
    assert all(expected)
    write_document(
        task / "task.json", TaskFacts(name="headlines", multiple_choice=True, rows={"validation": 23, "test": 23})
    )
    (score,) = score_models([tmp_path], tasks=[locate_task(str(task))], split="test").scores
    assert (score.n, score.accuracy) == (trained.n, trained.accuracy)
    if family != "bloom":  # which names no limit
        with find_given_model(Target(tmp_path)).load("fp32") as given:
            check_that_long_texts_are_cut_alike(given.scorer(), scorers[1])


def test_a_graph_without_a_cache_that_is_known_is_refused(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in ("input_ids", "image")
    ]
    output = helper.make_tensor_value_info("logits", TensorProto.INT64, ["batch", "length"])
    graph = helper.make_graph([helper.make_node("Add", ["input_ids", "image"], ["logits"])], "g", inputs, [output])
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "x.onnx")
    with pytest.raises(ModelUnsupported, match="the input 'image'"):
        OnnxScorer(open_session(tmp_path / "x.onnx"), tiny_tokenizer(), max_length=256)


def test_validation_never_opens_the_test_rows(task: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(task, tmp_path / "task")
    (copy / "test.jsonl").unlink()
    (copy / "test.parquet").unlink()
    model, tokenizer = FAMILIES["llama"](), tiny_tokenizer()
    without = evaluate(model, tokenizer, task="headlines", split="validation", include_path=copy)
    assert without_time(without) == without_time(
        evaluate(model, tokenizer, task="headlines", split="validation", include_path=task)
    )
    with pytest.raises(ArtefactMissing, match="the data of this task is missing"):
        evaluate(model, tokenizer, task="headlines", split="test", include_path=copy)


def test_a_users_own_task_is_found_by_name_and_keeps_to_the_split_asked_for(task: Path, tmp_path: Path) -> None:
    config = json.loads((task / "headlines_validation.yaml").read_text())
    config |= {
        "task": "mine",
        "test_split": "test",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": "validation.jsonl", "test": "test.jsonl"}},
    }
    copy = shutil.copytree(task, tmp_path / "task")
    (copy / "mine.yaml").write_text(json.dumps(config))
    model, tokenizer = FAMILIES["llama"](), tiny_tokenizer()
    for split in ("validation", "test"):
        named = evaluate(model, tokenizer, task="mine", split=split, include_path=copy)
        generated = evaluate(model, tokenizer, task="headlines", split=split, include_path=task)
        assert named.answers == generated.answers
        assert named.rows_sha256 == generated.rows_sha256
    del config["test_split"]
    (copy / "mine.yaml").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="has no test split"):
        Evaluator("mine", split="test", include_path=copy)


@pytest.mark.slow
def test_unknown_tasks_and_groups_are_refused(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import tasks

    # One of the harness's folders, which it reads in a moment.
    folder = Path(tasks.__file__).parent / "mmlu" / "default"
    known = tasks.TaskManager(include_path=str(folder), include_defaults=False)
    monkeypatch.setattr(harness_tasks, "_known_tasks", lambda: known)
    with pytest.raises(UsageError, match="no such task"):
        Evaluator("nothing_like_this", split="test", include_path=task)
    with pytest.raises(UsageError, match="group"):
        Evaluator("mmlu", split="test", include_path=task)


def test_a_task_without_accuracy_is_refused(task: Path) -> None:
    with pytest.raises(UsageError, match="reports no accuracy, only bits_per_byte"):
        Evaluator("headlines_test_text", split="test", include_path=task)


def test_a_model_that_computes_nan_is_refused_and_never_scored(task: Path) -> None:
    model = FAMILIES["llama"]()
    with torch.no_grad():
        model.get_output_embeddings().weight[7, 0] = float("nan")
    with pytest.raises(NonFiniteWeights, match="NaN"):
        evaluate(model, tiny_tokenizer(), task="headlines", split="test", include_path=task)


def test_nothing_is_printed(task: Path, capfd: pytest.CaptureFixture[str]) -> None:
    evaluate(FAMILIES["llama"](), tiny_tokenizer(), task="headlines", split="validation", include_path=task)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_the_task_files_work_with_the_harness_command_line(task: Path, tmp_path: Path) -> None:
    from tests.support.tiny_models import save_tiny

    save_tiny("llama", tmp_path / "model")
    ours = evaluate(FAMILIES["llama"](), tiny_tokenizer(), task="headlines", split="test", include_path=task)
    command = [
        sys.executable,
        "-m",
        "lm_eval",
        "run",
        "--include_path",
        ".",
        "--tasks",
        "headlines_test",
        "--model",
        "hf",
        "--device",
        "cpu",
    ]
    command += [
        "--model_args",
        f"pretrained={tmp_path / 'model'},dtype=float32",
        "--output_path",
        str(tmp_path / "out.json"),
    ]
    subprocess.run(command, cwd=task, check=True, capture_output=True, timeout=300)
    (file,) = tmp_path.glob("out*.json")
    assert json.loads(file.read_text())["results"]["headlines_test"]["acc,none"] == pytest.approx(ours.accuracy)


@pytest.mark.parametrize(
    ("share", "n", "low", "high"),
    # Newcombe (1998), table I: 81/263, 15/148, 0/20, 1/29.
    [
        (81 / 263, 263, 0.2553, 0.3662),
        (15 / 148, 148, 0.0624, 0.1605),
        (0.0, 20, 0.0, 0.1611),
        (1 / 29, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_equals_the_published_examples(share: float, n: int, low: float, high: float) -> None:
    assert wilson_interval(share, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_without_trials_says_nothing() -> None:
    assert wilson_interval(0.0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("first", "second", "differ"), [(0.82, 0.70, True), (0.82, 0.81, False), (0.5, 0.5, False), (1.0, 1.0, False)]
)
def test_differences_within_noise_are_no_differences(first: float, second: float, differ: bool) -> None:
    assert accuracies_differ(first, second, 1000) is differ
    assert accuracies_differ(second, first, 1000) is differ
