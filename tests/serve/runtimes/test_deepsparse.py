"""DeepSparse beside our exports: the graph that is written for it, and how it is run in an environment of its own."""

from __future__ import annotations

import json
import venv
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from benchmarks.static_decoder import MODEL, write_static_decoder
from serve.runtimes.deepsparse import HIDDEN
from serve.runtimes.deployment import find_deployment
from serve.runtimes.device import check_device
from serve.runtimes.runtime import RunOptions, load_runtime
from shearling.errors import PackageMissing, UsageError
from shearling.target import Target, parse_target
from tests.support.environments import environment_with, run_inside
from tests.support.serve_command import QUICK, serve
from tests.support.tiny_models import llama_tied_gqa, tiny_tokenizer

STAND_IN = '''
import onnx
import onnxruntime

class Engine:
    """Runs the graph, with the shapes and the interface of DeepSparse: every input in order, of the compiled shape."""

    def __init__(self, model, *, batch_size, num_cores, input_shapes):
        graph = onnx.load(model)
        assert (batch_size, graph.opset_import[0].version, graph.ir_version) == (1, 13, 8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_cores or 0
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._names = [node.name for node in self._session.get_inputs()]
        self._shapes = input_shapes
        assert len(self._names) == len(input_shapes)

    def run(self, inputs, val_inp):
        assert [list(array.shape) for array in inputs] == self._shapes
        assert all(array.flags.c_contiguous for array in inputs)
        return self._session.run(None, dict(zip(self._names, inputs)))
'''


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("static")
    llama_tied_gqa().save_pretrained(directory / "model")
    tiny_tokenizer().save_pretrained(directory / "model")
    write_static_decoder(directory / "model", directory / "decoder")
    return directory / "decoder"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("peer") / "environment"
    return environment_with(directory, module="deepsparse", source=STAND_IN, distribution="deepsparse")


def test_the_graph_computes_what_the_model_does(decoder: Path) -> None:
    """In two steps, so that the cache, the positions and the mask all count."""
    model = llama_tied_gqa()
    config = model.config
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, 9))
    groups, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    session = onnxruntime.InferenceSession(str(decoder / MODEL), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    cache = [np.zeros((1, groups, 1, width), np.float32)] * (2 * config.num_hidden_layers)
    seen = 0
    for length in (6, 3):
        mask = np.triu(np.full((length, length), HIDDEN, np.float32), 1)
        # The first place of the cache is empty.
        mask = np.pad(mask, ((0, 0), (seen + 1, 0)))
        mask[:, 0] = HIDDEN
        rows = np.tile(mask, (config.num_attention_heads // groups, 1))[None]
        positions = np.arange(seen, seen + length)[None]
        logits, *new = session.run(
            None, dict(zip(names, [ids[:, seen : seen + length], positions, rows, *cache], strict=True))
        )
        cache = [np.concatenate(pair, axis=2) for pair in zip(cache, new, strict=True)]
        seen += length
        with torch.inference_mode():
            expected = model(torch.tensor(ids[:, :seen])).logits[0, -1].numpy()
        assert np.abs(logits[0, 0] - expected).max() <= 1e-5


def test_a_static_decoder_is_a_deployment(decoder: Path) -> None:
    found, model = find_deployment(Target(decoder)), llama_tied_gqa()
    assert (found.format, found.vocabulary, found.context_tokens) == (
        "deepsparse",
        model.config.vocab_size,
        model.config.max_position_embeddings,
    )
    assert found.weights_bytes == (decoder / MODEL).stat().st_size
    with pytest.raises(UsageError, match="STREAMS is no property that deepsparse knows"):
        find_deployment(parse_target(f"{decoder}@STREAMS=1"))


def test_without_deepsparse_the_command_says_what_to_install(decoder: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "empty", with_pip=False)
    done = serve("bench", f"{decoder}@environment={tmp_path / 'empty'}", *QUICK)
    assert done.returncode == PackageMissing.exit_code
    assert "pip install deepsparse==1.8.0" in done.stderr


def test_deepsparse_is_measured_beside_an_export(decoder: Path, export: Path, environment: Path) -> None:
    check_device("deepsparse", "CPU", environment=environment)
    done = serve("bench", export / "openvino", f"{decoder}@environment={environment}", *QUICK, "--json")
    assert done.returncode == 0, done.stderr
    subjects = json.loads(done.stdout)["subjects"]
    assert [subject["deployment"]["format"] for subject in subjects] == ["openvino", "deepsparse"]
    facts = subjects[1]["facts"]
    assert (facts["runtime"], facts["precision"], facts["settings"]["threads"]) == ("DeepSparse 0.0.1", "fp32", "1")
    assert subjects[1]["ratios"]["tpot_s"]["samples"] == 3


def test_it_continues_like_torch(decoder: Path, environment: Path) -> None:
    work = """
prompt = runtime.encode("Area man wins.", chat=False)
free = runtime.generate([prompt], Decoding(max_new_tokens=70))
stopped = runtime.generate([prompt], Decoding(max_new_tokens=6, end_ids=frozenset(free.token_ids[3:4])))
show([prompt, free.model_dump(), stopped.model_dump(), runtime.decode(free.token_ids)])
"""
    prompt, free, stopped, text = run_inside(environment, decoder, work)
    # More tokens than one step of the cache holds.
    expected = (
        llama_tied_gqa()
        .generate(torch.tensor([prompt]), max_new_tokens=70, do_sample=False, eos_token_id=None)[0, len(prompt) :]
        .tolist()
    )
    assert (free["token_ids"], len(free["gaps_s"])) == (expected, 69)
    first = expected.index(expected[3])
    assert (stopped["token_ids"], len(stopped["gaps_s"])) == (expected[:first], first)
    assert text == tiny_tokenizer().decode(expected, skip_special_tokens=True)


def test_another_precision_is_refused(decoder: Path) -> None:
    with pytest.raises(UsageError, match="DeepSparse computes in fp32 here"):
        load_runtime(find_deployment(Target(decoder)), RunOptions(precision="bf16"))
