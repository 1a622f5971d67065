"""GGUF files answer tasks: rows, positions and memory of the process that reads them against a stand-in which notices
any mistake there, numbers against torch where llama.cpp is installed, and what is refused.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance

from benchmarks.gguf_writer import write_gguf
from shearling.errors import (
    ArtefactCorrupt,
    ArtefactMissing,
    ModelUnsupported,
    PackageMissing,
    ResourceExhausted,
    ShearlingError,
    UsageError,
)
from shearling.evaluation.evaluator import torch_scorer
from shearling.evaluation.given_model import find_given_model
from shearling.evaluation.llama_cpp_process import LlamaCppProcess, open_llama_cpp
from shearling.evaluation.llama_cpp_scorer import LlamaCppScorer
from shearling.evaluation.lm_eval_task import write_lm_eval_tasks
from shearling.evaluation.scoreboard import parse_tasks, score_models
from shearling.evaluation.task import TaskFacts, TaskRow, write_rows
from shearling.strict_json import write_document
from shearling.target import parse_target
from tests.support.documents import ROOT
from tests.support.tiny_models import VOCABULARY, llama, llama_tied_gqa, tiny_tokenizer

STAND_IN = '''
import ctypes, os, signal, sys
import numpy as np

VOCABULARY, LLAMA_FLASH_ATTN_TYPE_DISABLED, LLAMA_FLASH_ATTN_TYPE_ENABLED = 400, 0, 1
RAISES, KILLED = 401, 402

class Options: pass
llama_model_default_params = llama_context_default_params = Options
llama_log_callback = lambda function: function
llama_max_parallel_sequences = lambda: 256
llama_vocab_n_tokens = lambda vocabulary: VOCABULARY
llama_model_get_vocab = llama_get_memory = lambda owner: owner

def llama_log_set(callback, data):
    global log
    log = callback

def llama_model_load_from_file(path, options):
    if open(path, "rb").read(4) == b"GGUF":
        return "model"
    log(2, b"loading\\n", None)
    log(4, b"no magic\\n", None)

class Rows(list):
    pass

def llama_batch_init(tokens, embedding, sequences):
    batch = Options()
    batch.token, batch.pos, batch.n_seq_id, batch.logits = ([None] * tokens for _ in range(4))
    batch.seq_id = [[None] for _ in range(tokens)]
    return batch

def llama_init_from_model(model, options):
    options.read = {}
    return options

def llama_free(context):
    context.read = None

def llama_memory_clear(context, data):
    context.read = {}

def llama_decode(context, batch):
    """Logits depend on all that the row has read; positions, rows and room are checked as llama.cpp does."""
    if batch.n_tokens > context.n_batch:
        return 1
    context.logits = {}
    for index in range(batch.n_tokens):
        assert batch.n_seq_id[index] == 1 and 0 <= batch.seq_id[index][0] < context.n_seq_max
        if batch.token[index] == RAISES:
            raise RuntimeError("out of straw")
        if batch.token[index] == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        row = context.read.setdefault(batch.seq_id[index][0], [])
        assert batch.pos[index] == len(row)
        row.append(batch.token[index])
        if sum(map(len, context.read.values())) > context.n_ctx:
            return 1
        if batch.logits[index]:
            logits = np.random.default_rng(row).standard_normal(VOCABULARY, np.float32)
            context.logits[index] = logits if context.flash_attn_type else -logits
    print("this is no answer")
    return 0

def llama_get_logits_ith(context, index):
    return context.logits[index].ctypes.data
'''


def stand_in_logits(tokens: Sequence[int]) -> np.ndarray:
    """Of the stand-in, behind a row."""
    return np.random.default_rng(list(tokens)).standard_normal(VOCABULARY, np.float32)


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", llama_tied_gqa(), tiny_tokenizer())


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama_cpp is importable, here and in processes that are started."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "llama_cpp.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")


@pytest.fixture
def process(stand_in: None, gguf_file: Path) -> Iterator[LlamaCppProcess]:
    with open_llama_cpp(gguf_file, environment=None, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def llama_environment() -> Path | None:
    """Where the real llama.cpp is; None stands for the environment of the tests."""
    built = ROOT / "peers" / "llama"
    if importlib.util.find_spec("llama_cpp") is not None:
        return None
    if not any(built.glob("lib/python*/site-packages/llama_cpp")):
        pytest.skip("llama.cpp is not installed; python -m benchmarks.peers build llama.cpp peers/llama does it")
    return built


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("task")
    rows = [
        TaskRow(
            id=f"{number:064d}",
            prompt=f"Report {number}: " + "the lazy fox is fast; " * (number % 5) + "\nSarcastic:",
            choices=(" no", " yes, sure"),
            gold=number % 2,
            completion=" no",
            text=f"Report {number}: " + "the lazy fox is fast; " * (number % 7),
        )
        for number in range(30)
    ]
    write_rows(directory, "test", rows)
    write_lm_eval_tasks(directory, "headlines", multiple_choice=True)
    write_document(directory / "task.json", TaskFacts(name="headlines", multiple_choice=True, rows={"test": 30}))
    return directory


def rows_of(lengths: Sequence[int]) -> list[list[int]]:
    random = np.random.default_rng(5)
    return [random.integers(3, 300, length).tolist() for length in lengths]


@pytest.mark.parametrize("lengths", [(3, 1, 9), (700, 2, 513), (5,) * 70, (1100, 1100)])
def test_rows_are_read_apart_on_and_from_the_start(process: LlamaCppProcess, lengths: tuple[int, ...]) -> None:
    """Batches, rows and cells are fewer than these need at first."""
    rows, more, other = rows_of(lengths), rows_of(lengths[::-1])[::-1], rows_of((4, 2))
    wanted = [min(2, length) for length in lengths]
    found = process.read(rows, wanted, fresh=True)
    expected = [
        stand_in_logits(row[: len(row) - left])
        for row, count in zip(rows, wanted, strict=True)
        for left in reversed(range(count))
    ]
    np.testing.assert_array_equal(found, expected)
    found = process.read(more, [1] * len(rows), fresh=False)
    np.testing.assert_array_equal(found, [stand_in_logits(a + b) for a, b in zip(rows, more, strict=True)])
    np.testing.assert_array_equal(process.read(other, [1, 1], fresh=True), [stand_in_logits(row) for row in other])


@pytest.mark.parametrize(("setting", "sign"), [("", 1), ("@FLASH_ATTENTION=YES", 1), ("@FLASH_ATTENTION=NO", -1)])
def test_attention_is_in_one_pass_unless_told_otherwise(
    stand_in: None, gguf_file: Path, setting: str, sign: int
) -> None:
    asked = [Instance("loglikelihood", {}, ("yes", " no"), 0)]
    with find_given_model(parse_target(f"{gguf_file}{setting}")).load("fp32") as model:
        ((found, _),) = model.scorer().loglikelihood(asked)
    tokenizer = tiny_tokenizer()
    read, answer = tokenizer("yes").input_ids, tokenizer(" no").input_ids
    logits = [torch.from_numpy(sign * stand_in_logits(read + answer[:place])) for place in range(len(answer))]
    expected = sum(float(row.double().log_softmax(-1)[token]) for row, token in zip(logits, answer, strict=True))
    assert found == pytest.approx(expected, rel=1e-5)


def test_decoding_on_outgrows_the_memory_and_goes_on(process: LlamaCppProcess) -> None:
    row, said = rows_of((2040,))[0], 7
    process.read([row], [1], fresh=True)
    for _ in range(20):
        row.append(said)
        (logits,) = process.read([[said]], [1], fresh=False)
        np.testing.assert_array_equal(logits, stand_in_logits(row))
        said = int(logits[:300].argmax())


def test_prompts_of_unlike_length_are_continued_greedily(process: LlamaCppProcess) -> None:
    tokenizer = tiny_tokenizer()
    prompts = ["The quick", "Area man wins award for the best headline of the year", "yes"]
    asked = [Instance("generate_until", {}, (prompt, {"max_gen_toks": 6}), 0) for prompt in prompts]
    expected = []
    for prompt in prompts:
        read, answer = tokenizer(prompt).input_ids, []
        while len(answer) < 6 and (token := int(stand_in_logits(read + answer).argmax())) != tokenizer.eos_token_id:
            answer.append(token)
        expected.append(tokenizer.decode(answer, skip_special_tokens=True))
    assert LlamaCppScorer(process, tokenizer, batch_size=1000).generate_until(asked) == expected
    assert len(set(expected)) == 3


def test_a_process_that_dies_says_its_last_line(stand_in: None, gguf_file: Path) -> None:
    for token, error, said in (
        (401, ShearlingError, "exit code 1: RuntimeError: out of straw"),
        (402, ResourceExhausted, "most likely for memory"),
    ):
        with open_llama_cpp(gguf_file, environment=None, threads=1) as process:
            with pytest.raises(error, match=said):
                process.read([[5, token]], [1], fresh=True)
            with pytest.raises(error, match=said):
                process.read([[5]], [1], fresh=True)


def test_a_process_ends_with_its_context(stand_in: None, gguf_file: Path) -> None:
    with pytest.raises(KeyError), open_llama_cpp(gguf_file, environment=None, threads=1) as process:
        raise KeyError
    with pytest.raises(ValueError, match="closed"):
        process.read([[5]], [1], fresh=True)


def test_a_file_that_llama_cpp_does_not_load(stand_in: None, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGU")
    with (
        pytest.raises(ArtefactCorrupt, match="does not load it: no magic"),
        open_llama_cpp(broken, environment=None, threads=1),
    ):
        pass


def test_a_gguf_file_answers_a_task(stand_in: None, gguf_file: Path, task: Path) -> None:
    (score,) = score_models([gguf_file], tasks=parse_tasks(str(task)), split="test", limit=20).scores
    assert (score.directory, score.n, score.sparsity) == (str(gguf_file), 20, None)
    tokenizer, right = tiny_tokenizer(), 0
    for number in range(20):
        prompt = f"Report {number}: " + "the lazy fox is fast; " * (number % 5) + "\nSarcastic:"
        sums = []
        for choice in (" no", " yes, sure"):
            read, answer = tokenizer(prompt).input_ids, tokenizer(choice).input_ids
            assert tokenizer(prompt + choice).input_ids == read + answer
            shares = [
                torch.from_numpy(stand_in_logits(read + answer[:place])).double().log_softmax(-1)[token]
                for place, token in enumerate(answer)
            ]
            sums.append(float(sum(shares)))
        right += (sums[1] > sums[0]) == number % 2
    assert score.accuracy == right / 20


def test_what_an_evaluation_does_not_honour_is_refused(gguf_file: Path, tmp_path: Path, stand_in: None) -> None:
    (tmp_path / "config.json").write_text("{}")
    for written, said in (
        (f"{gguf_file}@N_CTX=64", "N_CTX: a model in gguf is evaluated without properties other than FLASH_ATTENTION"),
        (f"{gguf_file}@FLASH_ATTENTION=off", "it is YES or NO, not off"),
        (f"{tmp_path}@NUM_STREAMS=1", "NUM_STREAMS: a model in torch is evaluated without properties"),
        (f"{tmp_path}@environment={tmp_path}", "evaluated in the environment that runs"),
        (f"{tmp_path}@format=deepsparse", "not as deepsparse"),
    ):
        with pytest.raises(UsageError, match=said):
            find_given_model(parse_target(written))
    for written, said in (
        (f"{gguf_file}@format=openvino", "a GGUF file, not openvino"),
        (f"{tmp_path}@format=openvino", "no openvino model here"),
        (f"{tmp_path}@format=gguf", "no gguf model here"),
        (f"{tmp_path}@format=onnx", "no onnx model here"),
    ):
        with pytest.raises(ArtefactMissing, match=said):
            find_given_model(parse_target(written))


def test_a_format_is_chosen_where_an_export_has_several(tmp_path: Path) -> None:
    for part in ("model", "openvino", "onnx"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text("{}")
    (tmp_path / "openvino" / "openvino_model.xml").touch()
    (tmp_path / "onnx" / "model.onnx").touch()
    found = {
        setting: find_given_model(parse_target(f"{tmp_path}{setting}"))
        for setting in ("", "@format=torch", "@format=openvino", "@NUM_STREAMS=1,format=openvino", "@format=onnx")
    }
    assert [candidate.path.name for candidate in found.values()] == ["model", "model", "openvino", "openvino", "onnx"]
    assert found["@NUM_STREAMS=1,format=openvino"].target.properties == {"NUM_STREAMS": "1"}


def test_what_is_named_like_a_gguf_file_and_is_none_is_said_to_be_damaged(tmp_path: Path) -> None:
    file = tmp_path / "page.gguf"
    file.write_text("<html>")
    with pytest.raises(ArtefactCorrupt, match="does not begin as one"):
        find_given_model(parse_target(file))


def test_a_gguf_file_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "silent.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tokenizer_model("no_vocab")
    writer.add_tensor("output_norm.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelUnsupported, match=r"no vocabulary.*Convert the model again"):
        find_given_model(parse_target(file))


def test_without_llama_cpp_an_environment_is_asked_for(gguf_file: Path, tmp_path: Path) -> None:
    with pytest.raises(PackageMissing, match="no virtual environment here"):
        find_given_model(parse_target(f"{gguf_file}@environment={tmp_path}"))
    if importlib.util.find_spec("llama_cpp") is None:
        with pytest.raises(PackageMissing, match="pip install llama-cpp-python, or name an environment"):
            find_given_model(parse_target(gguf_file))


def test_a_gguf_file_is_not_compared_with_a_classifier(
    gguf_file: Path, task: Path, tmp_path: Path, stand_in: None
) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["BertForSequenceClassification"]}')
    with pytest.raises(UsageError, match="are not compared"):
        score_models([gguf_file, tmp_path], tasks=parse_tasks(str(task)), split="test")


@pytest.mark.parametrize("family", [llama, llama_tied_gqa])
def test_the_real_llama_cpp_scores_and_continues_as_torch(family, llama_environment, task, tmp_path) -> None:
    model, tokenizer = family(), tiny_tokenizer()
    file = write_gguf(tmp_path / "tiny.gguf", model, tokenizer)
    rows = [json.loads(line) for line in (task / "test.jsonl").read_text().splitlines()]
    pairs = [
        Instance("loglikelihood", {}, (row["prompt"], choice), 0) for row in rows for choice in (" no", " yes, sure")
    ]
    texts = [Instance("loglikelihood_rolling", {}, (row["text"],), 0) for row in rows]
    asked = [Instance("generate_until", {}, (row["prompt"], {"max_gen_toks": 9}), 0) for row in rows[:7]]
    expected = torch_scorer(model, tokenizer)
    with open_llama_cpp(file, environment=llama_environment, threads=1) as process:
        scorer = LlamaCppScorer(process, tokenizer, batch_size=5)
        for (found, _), (right, _) in zip(scorer.loglikelihood(pairs), expected.loglikelihood(pairs), strict=True):
            assert found == pytest.approx(right, rel=2e-3)
        assert scorer.loglikelihood_rolling(texts) == pytest.approx(expected.loglikelihood_rolling(texts), rel=2e-3)
        assert scorer.generate_until(asked) == expected.generate_until(asked)
    target = file if llama_environment is None else f"{file}@environment={llama_environment}"
    (score,) = score_models([parse_target(target)], tasks=parse_tasks(str(task)), split="test").scores
    assert score.n == 30
