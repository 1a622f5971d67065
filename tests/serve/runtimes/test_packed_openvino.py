"""A sparse export in every way to run it: our command, GenAI with streaming and batching, optimum; and what is
refused."""

from __future__ import annotations

import re
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from openvino import opset13
from transformers import LlamaConfig, LlamaForCausalLM

from export.formats.openvino import MODEL_XML, write_openvino
from serve.bench.benchmark import run_benchmark
from serve.bench.workload import make_workload
from serve.runtimes.deployment import find_deployment
from serve.runtimes.openvino import load_batching_pipeline
from serve.runtimes.runtime import Decoding, RunOptions, load_runtime
from shearling.demo.shears.outcome import EXTENSIONS
from shearling.errors import ArtefactCorrupt, ArtefactError, UsageError
from shearling.evaluation.given_model import LoadedModel, find_given_model
from shearling.kernel import openvino_extension
from shearling.kernel.compilation import OPENVINO_LIBRARY
from shearling.kernel.loading import packed_choice
from shearling.kernel.loading.packed_choice import CHOICES, ForwardStopwatch, Timing
from shearling.kernel.openvino_extension import core_for, required_extensions
from shearling.kernel.packed_format import VERSION, Encoding, ValueType
from shearling.target import Target, parse_target
from tests.support.exported_files import stored_as
from tests.support.serve_command import PROMPT, run_serve
from tests.support.tiny_models import pruned_model, tiny_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it
FP32 = RunOptions(precision="fp32", threads=1)
FORMER_INT4 = 3


@pytest.fixture(scope="module")
def sparse(tmp_path_factory) -> Path:
    """A directory with stock/ and sparse/ of one pruned int8 model."""
    root = tmp_path_factory.mktemp("kernel")
    model, _ = pruned_model("llama_tied_gqa")
    for kernel in ("stock", "sparse"):
        write_openvino(model, tiny_tokenizer(), root / kernel, stored_as("int8", kernel=kernel), sparsity={})
    return root


@pytest.fixture(scope="module")
def greedy(sparse) -> list[int]:
    """What the stock file says."""
    runtime = load_runtime(find_deployment(Target(sparse / "stock")), FP32)
    return list(runtime.generate([runtime.encode(PROMPT, chat=False)], Decoding(max_new_tokens=16)).token_ids)


def libraries(directory: Path) -> list[str]:
    return [str(library) for library in required_extensions(directory / MODEL_XML)]


def test_the_command_says_what_the_stock_file_says(sparse, greedy):
    runtime = load_runtime(find_deployment(Target(sparse / "sparse")), FP32)
    prompt = runtime.encode(PROMPT, chat=False)
    pieces: list[str] = []
    answer = runtime.generate([prompt], Decoding(max_new_tokens=16, on_text=pieces.append))
    assert list(answer.token_ids) == greedy
    assert len(pieces) > 1
    assert "".join(pieces) == runtime.decode(answer.token_ids)
    told = runtime.facts.settings[EXTENSIONS]
    assert told == ",".join(Path(library).name for library in libraries(sparse / "sparse"))
    assert OPENVINO_LIBRARY in told, "what our operators run is ours on the demo's chart"


def test_unpacked_it_is_the_stock_file(sparse, greedy):
    runtime = load_runtime(find_deployment(parse_target(f"{sparse / 'sparse'}@PACKED=never")), FP32)
    assert runtime.facts.settings["packed"] == "unpacked, as asked for"
    assert runtime.facts.settings["attention"].startswith("OpenVINO's: ")
    answer = runtime.generate([runtime.encode(PROMPT, chat=False)], Decoding(max_new_tokens=16))
    assert list(answer.token_ids) == greedy
    stock, unpacked = (
        _logits(parse_target(argument)) for argument in (str(sparse / "stock"), f"{sparse / 'sparse'}@PACKED=never")
    )
    assert torch.equal(stock, unpacked)


def test_with_its_zeros_put_back_it_is_the_same(sparse, greedy, capsys):
    openvino_extension._say.cache_clear()
    runtime = load_runtime(find_deployment(parse_target(f"{sparse / 'sparse'}@PACKED=expanded")), FP32)
    assert runtime.facts.settings["packed"] == "zeros put back, as asked for"
    answer = runtime.generate([runtime.encode(PROMPT, chat=False)], Decoding(max_new_tokens=16))
    assert list(answer.token_ids) == greedy
    assert "zeros put back, as asked for" in capsys.readouterr().err
    packed, expanded = (
        _logits(parse_target(f"{sparse / 'sparse'}@PACKED={choice}")) for choice in ("always", "expanded")
    )
    assert torch.equal(packed, expanded)


@pytest.mark.parametrize("kernel", ["sparse", "stock"])
def test_a_choice_that_there_is_not(sparse, kernel):
    target = parse_target(f"{sparse / kernel}@PACKED=sometimes")
    refused = r"PACKED is 'sometimes', not one of always, expanded, measured, never"
    with pytest.raises(UsageError, match=refused):
        load_runtime(find_deployment(target), FP32)
    with pytest.raises(UsageError, match=refused):
        _logits(target)
    done = run_serve(f"{sparse / kernel}@PACKED=sometimes")
    assert done.returncode == 2, done.stderr


def test_a_file_without_our_operators_takes_any_choice(sparse, greedy):
    for choice in CHOICES:
        runtime = load_runtime(find_deployment(parse_target(f"{sparse / 'stock'}@PACKED={choice}")), FP32)
        answer = runtime.generate([runtime.encode(PROMPT, chat=False)], Decoding(max_new_tokens=16))
        assert list(answer.token_ids) == greedy
    assert torch.equal(*(_logits(parse_target(f"{sparse / 'stock'}{choice}")) for choice in ("", "@PACKED=always")))


@pytest.mark.parametrize("slower", ["SparseHead", "SparseLayer"])
def test_what_is_measured_to_be_slower_is_unpacked(sparse, greedy, monkeypatch, capsys, slower):
    def measure(self, operators, rows):
        return Timing(2.0 if operators[0].kind == slower else 0.5, 1.0, None)

    monkeypatch.setattr(ForwardStopwatch, "measure", measure)
    monkeypatch.setattr(ForwardStopwatch, "_place", lambda *_: None)
    monkeypatch.setattr(packed_choice, "LEAST_BYTES", 1)
    openvino_extension._say.cache_clear()
    deployment = find_deployment(parse_target(f"{sparse / 'sparse'}@PACKED=measured"))
    for _ in range(2):
        runtime = load_runtime(deployment, RunOptions(threads=1))
        assert "2 of 5 unpacked: packed products take " in runtime.facts.settings["packed"]
        answer = runtime.generate([runtime.encode(PROMPT, chat=False)], Decoding(max_new_tokens=16))
        assert list(answer.token_ids) == greedy
    assert capsys.readouterr().err.count("2 of 5 unpacked") == 1


def test_continuous_batching_takes_what_is_unpacked(sparse, greedy):
    import openvino_genai

    deployment = find_deployment(parse_target(f"{sparse / 'sparse'}@PACKED=never"))
    pipeline, facts = load_batching_pipeline(deployment, FP32, with_tokenizer=True)
    config = openvino_genai.GenerationConfig(max_new_tokens=16, do_sample=False, ignore_eos=True)
    ids = pipeline.get_tokenizer().encode(PROMPT).input_ids
    (result,) = pipeline.generate([ids], [config])
    assert list(result.m_generation_ids[0]) == greedy
    assert facts.settings["packed"] == "unpacked, as asked for"


def test_continuous_batching_answers_several_prompts(sparse):
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 1
    scheduler.max_num_batched_tokens = 64
    config = openvino_genai.GenerationConfig(max_new_tokens=10, do_sample=False, ignore_eos=True)
    prompts = [PROMPT, "Report: nation", "Is this headline sarcastic? Answer:"]
    answers = {}
    for kernel in ("stock", "sparse"):
        extensions = {"extensions": libraries(sparse / kernel)} if kernel == "sparse" else {}
        pipe = openvino_genai.LLMPipeline(
            str(sparse / kernel),
            "CPU",
            scheduler_config=scheduler,
            INFERENCE_PRECISION_HINT="f32",
            KV_CACHE_PRECISION="f32",
            **extensions,
        )
        answers[kernel] = pipe.generate(prompts, config).texts
    assert answers["sparse"] == answers["stock"]


def test_optimum_runs_it(sparse, greedy):
    from optimum.intel.openvino import OVModelForCausalLM, modeling_base, modeling_decoder

    for module in (modeling_base, modeling_decoder):
        for library in libraries(sparse / "sparse"):
            module.core.add_extension(library)
    model = OVModelForCausalLM.from_pretrained(
        sparse / "sparse", ov_config={"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    )
    inputs = tiny_tokenizer()(PROMPT, return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=16, min_new_tokens=16, do_sample=False)[
        0, inputs["input_ids"].shape[1] :
    ]
    assert answer.tolist() == greedy


def test_several_settings_of_one_model_in_one_run(sparse):
    written = [f"{sparse / 'stock'}@DYNAMIC_QUANTIZATION_GROUP_SIZE=0", f"{sparse / 'stock'}", f"{sparse / 'sparse'}"]
    targets = [parse_target(argument) for argument in written]
    benchmark = run_benchmark(targets, options=RunOptions(threads=1), workload=make_workload(8, 4, repeats=1, warmup=0))
    settings = [subject.facts.settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] for subject in benchmark.subjects]
    assert settings[0] == "0" != settings[1]
    assert [subject.deployment.label for subject in benchmark.subjects] == written
    assert set(benchmark.subjects[2].ratios) == {"ttft_s", "tpot_s", "total_s"}


def test_a_format_that_nothing_runs_is_answered_with_those_that_are(sparse):
    with pytest.raises(UsageError, match=r"no runtime 'onx'. Did you mean 'onnx'.*gguf"):
        parse_target(f"{sparse / 'stock'}@format=onx")


def test_a_property_that_openvino_does_not_know(sparse):
    with pytest.raises(UsageError, match="OpenVINO refuses"):
        load_runtime(find_deployment(parse_target(f"{sparse / 'stock'}@NO_SUCH_PROPERTY=1")), FP32)


def test_genai_cuts_the_prompt_off_before_the_head(tmp_path):
    """Logits of all 1,000 tokens would be 160 MB."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=40000,
    )
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if ".layers." in name and parameter.dim() == 2:
            parameter.data[:, ::2] = 0
    for kernel in ("stock", "sparse"):
        write_openvino(model, tiny_tokenizer(), tmp_path / kernel, stored_as("int8", kernel=kernel), sparsity={})
    assert b"SparseHead" in (tmp_path / "sparse" / MODEL_XML).read_bytes()
    workload = make_workload(prompt_tokens=1000, new_tokens=2, repeats=1, warmup=0, seed=0)
    stock, sparse = run_benchmark(
        [Target(tmp_path / "stock"), Target(tmp_path / "sparse")], options=RunOptions(threads=1), workload=workload
    ).subjects
    assert sparse.peak_memory_bytes - stock.peak_memory_bytes < 60e6


@pytest.mark.parametrize("place", ["header", "masks", "scales"])
@pytest.mark.parametrize("packed", ["always", "never"])
def test_a_constant_that_lies_is_refused_before_it_runs(sparse, tmp_path, place, packed):
    broken = Path(shutil.copytree(sparse / "sparse", tmp_path / "broken"))
    _corrupt(broken, place)
    with pytest.raises(ArtefactCorrupt, match="packed"):
        load_runtime(find_deployment(parse_target(f"{broken}@PACKED={packed}")), FP32)
    done = run_serve(broken)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr


def test_int4_of_an_earlier_version_is_refused_with_what_to_do(sparse, tmp_path):
    older = Path(shutil.copytree(sparse / "sparse", tmp_path / "older"))
    _corrupt(older, "value type")
    done = run_serve(older)
    assert done.returncode == 3, done.stderr
    assert "int4 in the layout of an earlier version. Export again" in " ".join(done.stderr.split())


def test_weights_that_are_no_constant_are_refused_before_anything_runs(sparse, tmp_path):
    crafted = Path(shutil.copytree(sparse / "sparse", tmp_path / "crafted"))
    xml = (crafted / MODEL_XML).read_text()
    ids = {kind: number for number, kind in re.findall(r'<layer id="(\d+)" name="[^"]*" type="(\w+)"', xml)}
    edge = r'from-layer="\d+" from-port="\d+" (to-layer="{}" to-port="1")'.format(ids["SparseEmbedding"])
    changed, count = re.subn(edge, rf'from-layer="{ids["Parameter"]}" from-port="0" \1', xml)
    assert count == 1
    (crafted / MODEL_XML).write_text(changed)
    done = run_serve(crafted)
    assert done.returncode == 3, done.stderr
    assert "not a constant of the model" in done.stderr
    with pytest.raises(ArtefactError, match="not a constant of the model"), _given(crafted):
        pass


def test_what_only_an_inference_shows_is_refused_by_it(sparse, tmp_path):
    crafted = Path(shutil.copytree(sparse / "sparse", tmp_path / "crafted"))
    model = core_for(crafted / MODEL_XML).read_model(crafted / MODEL_XML)
    embedding = next(node for node in model.get_ops() if node.get_type_name() == "SparseEmbedding")
    tokens = embedding.input_value(0)
    far = opset13.add(tokens, opset13.constant(np.array(5000, tokens.get_element_type().to_dtype())))
    embedding.input(0).replace_source_output(far.output(0))
    openvino.save_model(model, tmp_path / MODEL_XML, compress_to_fp16=False)
    del model, embedding, tokens
    for name in (MODEL_XML, "openvino_model.bin"):
        shutil.move(tmp_path / name, crafted / name)
    done = run_serve(crafted)
    assert done.returncode == 3, done.stderr
    assert "is not in a vocabulary of" in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(ArtefactCorrupt, match="is not in a vocabulary of") as caught, _given(crafted) as model:
        model.scorer().logits(torch.ones(1, 3, dtype=torch.long), 0)
    assert caught.value.where == str(crafted)


@pytest.mark.parametrize("share", ["many", "nan", "-1"])
def test_a_share_of_zeros_that_is_none_is_refused(sparse, tmp_path, share):
    crafted = Path(shutil.copytree(sparse / "stock", tmp_path / "crafted"))
    model = core_for(sparse / "stock" / MODEL_XML).read_model(sparse / "stock" / MODEL_XML)
    model.set_rt_info(share, ["sparsity", "share"])
    openvino.save_model(model, crafted / MODEL_XML, compress_to_fp16=False)
    with pytest.raises(ArtefactCorrupt, match=f"its share of zeros is '{share}'"), _given(crafted):
        pass


def test_without_a_compiler_the_error_says_what_is_missing(sparse, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    done = run_serve(
        sparse / "sparse",
        PATH=str(tools),
        CXX="",
        XDG_CACHE_HOME=str(tmp_path / "cache"),
        SHEARLING_CACHE=str(tmp_path / "cache"),
    )
    assert done.returncode == 4, done.stderr
    assert "g++ 11 or newer" in done.stderr
    stock = run_serve(sparse / "stock", PATH=str(tools), CXX="", XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert stock.returncode == 0, stock.stderr


def _logits(target: Target) -> torch.Tensor:
    """As `shearling evaluate` computes them."""
    with find_given_model(target).load("fp32") as model:
        return torch.as_tensor(model.scorer().logits(torch.arange(1, 13).reshape(1, -1), 0))


def _given(directory: Path) -> AbstractContextManager[LoadedModel]:
    """What `shearling evaluate` makes of it."""
    return find_given_model(Target(directory)).load("fp32")


def _corrupt(directory: Path, place: str) -> None:
    """Break the first packed matrix with a mask inside the .bin, where its magic shows where it lies."""
    path = directory / "openvino_model.bin"
    content = bytearray(path.read_bytes())
    masked = b"SHEARLNG" + np.array([VERSION, ValueType.INT8, Encoding.BITMASK], "<u4").tobytes()
    start = content.index(masked)
    offsets = np.frombuffer(content[start + 24 : start + 128], dtype="<u8")
    if place == "header":
        content[start + 8] ^= 0xFF
    elif place == "value type":
        content[start + 12] = FORMER_INT4
    elif place == "masks":
        content[start + int(offsets[7])] ^= 1
    else:
        content[start + int(offsets[5]) : start + int(offsets[5]) + 2] = b"\x00\x7e"
    path.write_bytes(content)
