"""The wheel of shearling-runtime, built, and installed where there is nothing else: no compiler, no torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import bill_of_materials
import build_wheels
import pytest
import torch
from elftools.elf.elffile import ELFFile

from benchmarks import runtime_wheel
from export.formats.onnx import MODEL_ONNX, write_onnx
from export.formats.onnx_genai import write_onnx_genai
from export.formats.openvino import write_openvino
from shearling.kernel.build import build_library, build_onnx_runtime_library
from shearling.kernel.compilation import SOURCES
from shearling.model.checkpoint import load_model, load_tokenizer
from shearling.model.layers import find_layers
from tests.support.documents import ROOT
from tests.support.exported_files import stored_as
from tests.support.once_per_run import once_per_run
from tests.support.onnxruntime_headers import needs_headers
from tests.support.serve_command import serve
from tests.support.smollm2 import smollm2_base
from tests.support.tiny_models import pruned_model, tiny_tokenizer, wide_model

pytestmark = [
    pytest.mark.slow,
    needs_headers,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it
MOST_BYTES = 3_000_000
PROMPTS = ("Area man wins award for the best", "Report: nation", "Is this headline sarcastic? Answer:")
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    (built,) = once_per_run(tmp_path_factory, "runtime-wheel", build_wheels.build_runtime).glob("*.whl")
    # Its bill is written beside it.
    return Path(shutil.copy(built, tmp_path_factory.mktemp("dist")))


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    """A directory for PYTHONPATH."""
    directory = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
    return directory


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel and the runtimes that it serves, and nothing else."""
    directory = tmp_path_factory.mktemp("environment") / "fresh"
    venv.create(directory, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", str(directory / "bin" / "python"), "install", "--quiet"]
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run(
        [*pip, *constraints, str(wheel), "openvino-genai", "onnxruntime", "onnxruntime-genai"], check=True, timeout=600
    )
    return directory


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    """openvino/ and onnx/ of one sparse model, and onnx-genai/ of another."""
    root = tmp_path_factory.mktemp("export")
    model, _ = pruned_model("llama")
    write_openvino(model, tiny_tokenizer(), root / "openvino", stored_as("int8", kernel="sparse"), sparsity={})
    write_onnx(model, tiny_tokenizer(), root / "onnx", stored_as("bf16", kernel="sparse"))
    write_onnx_genai(wide_model(), tiny_tokenizer(), root / "onnx-genai", stored_as("int8", kernel="sparse"))
    return root


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Path:
    """openvino/ of a model whose attention can go into its layers."""
    root, model = tmp_path_factory.mktemp("decoder"), wide_model()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1)  # a norm of ones would be left out of the graph
    write_openvino(model, tiny_tokenizer(), root / "openvino", stored_as("int8", kernel="sparse"), sparsity={})
    return root


def run_alone(environment: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """A command of an environment, with no other command to be found."""
    program = environment / "bin" / command[0]
    return subprocess.run(
        [str(program), *map(str, command[1:])],
        env={"PATH": ""},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_it_is_small_and_holds_nothing_of_others(wheel, unpacked):
    assert wheel.stat().st_size < MOST_BYTES
    assert wheel.name.startswith("shearling_runtime-2026.")
    assert "-py3-none-manylinux_2_" in wheel.name
    assert sorted(path.name for path in unpacked.rglob("*.so*")) == [
        "libshearling_onnxruntime.so",
        "libshearling_openvino.so",
    ]
    for library in unpacked.rglob("*.so"):
        content = library.read_bytes()
        assert b"avx512" in content
        # A symbol of glibc 2.38, which sscanf and strtol become: it would shut out the systems before.
        assert b"__isoc23" not in content
        for machine_path in (str(ROOT), sys.prefix, str(Path.home()) + "/", "/tmp/"):
            assert machine_path.encode() not in content


def machine_code(library: Path) -> bytes:
    with library.open("rb") as file:
        return ELFFile(file).get_section_by_name(".text").data()


def test_its_code_is_what_the_toolchain_compiles_so_that_it_is_as_fast(unpacked):
    for compiled in (build_library(), build_onnx_runtime_library()):
        prebuilt = unpacked / "shearling_runtime" / "libraries" / compiled.name
        assert compiled != prebuilt
        # Paths of different lengths would move what the code refers to.
        assert str(SOURCES).encode() not in compiled.read_bytes()
        assert machine_code(compiled) == machine_code(prebuilt)


def test_the_environment_holds_neither_compiler_nor_toolchain(fresh):
    question = (
        "import importlib.util, shutil; names = ('torch', 'pydantic', 'transformers', 'shearling', 'rich');"
        "print([name for name in names if importlib.util.find_spec(name)], shutil.which('g++'), shutil.which('cc'))"
    )
    assert run_alone(fresh, "python", "-c", question).stdout.split() == ["[]", "None", "None"]


@pytest.mark.parametrize("options", [(), ("--no-genai",)], ids=["genai", "alone"])
def test_a_sparse_model_is_measured_there_without_the_toolchain(fresh, export, options):
    model = export / "openvino"
    work = ("--prompt-tokens", "16", "--max-new-tokens", "8", "--repeats", "2", "--threads", "1", "--json")
    there = serve("bench", f"{model}@environment={fresh}", *options, *work)
    assert there.returncode == 0, there.stderr
    here = serve("bench", model, *work)
    tokens = [[sample["token_ids"] for sample in json.loads(done.stdout)["samples"]] for done in (there, here)]
    assert tokens[0] == tokens[1]
    assert len(tokens[0][0]) == 8


def test_it_says_the_tokens_that_the_toolchain_says(fresh, export):
    for prompt in PROMPTS:
        options = ("--prompt", prompt, "--max-new-tokens", str(NEW_TOKENS), "--no-chat", "--json")
        alone = run_alone(fresh, "shearling-run", export, *options)
        assert alone.returncode == 0, alone.stderr
        toolchain = serve("generate", export / "openvino", *options)
        assert toolchain.returncode == 0, toolchain.stderr
        ours, theirs = json.loads(alone.stdout), json.loads(toolchain.stdout)
        assert ours["packed"]
        assert ours["token_ids"] == theirs["token_ids"]
        assert ours["text"] == theirs["text"]
        # A model that repeats one token would agree with everything.
        assert len(set(ours["token_ids"])) > 3


EVERY_WAY = """
import sys
import openvino_genai, shearling_runtime
source, fused, prompt = sys.argv[1:]
config = openvino_genai.GenerationConfig(max_new_tokens=24, ignore_eos=True, apply_chat_template=False)
properties = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
shearling_runtime.write_fused(source, fused)
extended = {**properties, "ATTENTION_BACKEND": "SDPA", "extensions": [shearling_runtime.extension()]}
ways = [shearling_runtime.pipeline(source, PACKED=word, **properties) for word in ("always", "measured", "never")]
ways += [shearling_runtime.pipeline(fused, **properties), openvino_genai.LLMPipeline(fused, "CPU", **extended)]
texts = [str(way.generate(prompt, config)) for way in ways]
print(len(set(texts)), len(texts[0]) > 10)
try:
    shearling_runtime.write_fused(source, fused)
except shearling_runtime.RuntimeFault as fault:
    print(fault.exit_code, fault.message)
try:
    shearling_runtime.pipeline(source, PACKED="perhaps")
except shearling_runtime.RuntimeFault as fault:
    print(fault.exit_code, fault.message)
"""


def test_packed_unpacked_or_written_with_attention_in_its_layers_it_says_the_same(fresh, decoder, tmp_path):
    done = run_alone(fresh, "python", "-c", EVERY_WAY, decoder / "openvino", tmp_path / "fused", PROMPTS[0])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "1 True",
        "2 there is something already",
        "2 PACKED is 'perhaps', not one of always, expanded, measured, never",
    ]
    assert b"SparseDecoder" in (tmp_path / "fused" / "openvino_model.xml").read_bytes()
    # The toolchain takes it as it is.
    options = ("--prompt", PROMPTS[0], "--max-new-tokens", "4", "--no-chat", "--json")
    shown = json.loads(serve("generate", tmp_path / "fused", *options).stdout)
    assert shown["facts"]["settings"]["attention"] == "in the layers"


def test_onnx_runtime_genai_says_them_too(fresh, export):
    options = ("--prompt", PROMPTS[0], "--max-new-tokens", str(NEW_TOKENS), "--no-chat", "--json")
    alone = run_alone(fresh, "shearling-run", export / "onnx-genai", *options)
    assert alone.returncode == 0, alone.stderr
    ours = json.loads(alone.stdout)
    theirs = json.loads(serve("generate", export / "onnx-genai", *options).stdout)
    assert ours["packed"]
    # GenAI's tokenizer ends a text at bytes that are no character, as a random model makes them.
    assert ours["token_ids"] == theirs["token_ids"]
    assert len(set(ours["token_ids"])) > 3
    own_tokenizer = (
        "import sys, shearling_runtime, onnxruntime_genai as og;"
        "model = shearling_runtime.load_genai_model(sys.argv[1], intra_op_num_threads=1);"
        "print(*og.Tokenizer(model).encode('Area man'))"
    )
    assert run_alone(fresh, "python", "-c", own_tokenizer, export / "onnx-genai").stdout.split()


@pytest.mark.pretrained
def test_a_real_model_answers_in_chat(fresh, tmp_path, tmp_path_factory):
    base = smollm2_base(tmp_path_factory)
    model = load_model(base.path)
    with torch.no_grad():
        # By magnitude, 30 %: enough for packing, and what is left still speaks.
        for linear in find_layers(model).linears().values():
            size = linear.weight.abs()
            linear.weight.mul_(size > size.kthvalue(size.shape[1] * 3 // 10, dim=1, keepdim=True).values)
    storage = stored_as("int8", kernel="sparse")
    write_openvino(model, load_tokenizer(base.path), tmp_path / "openvino", storage, sparsity={})
    options = ("--prompt", "What is the capital of France?", "--max-new-tokens", "24", "--json")
    alone = run_alone(fresh, "shearling-run", tmp_path, *options)
    assert alone.returncode == 0, alone.stderr
    ours, theirs = json.loads(alone.stdout), json.loads(serve("generate", tmp_path / "openvino", *options).stdout)
    assert ours["packed"]
    assert "Paris" in ours["text"]
    assert (ours["token_ids"], ours["prompt_tokens"]) == (theirs["token_ids"], theirs["prompt_tokens"])


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_a_program_in_cpp_says_them_too(fresh, decoder, tmp_path):
    python = f"-DPython3_EXECUTABLE={fresh / 'bin' / 'python'}"
    for arguments in (["-S", ROOT / "examples" / "cpp", "-B", tmp_path, python], ["--build", tmp_path]):
        done = subprocess.run(["cmake", *arguments], capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    options = ("--prompt", PROMPTS[0], "--max-new-tokens", str(NEW_TOKENS), "--no-chat", "--json")
    ours = json.loads(run_alone(fresh, "shearling-run", decoder, *options).stdout)
    assert len(ours["token_ids"]) == NEW_TOKENS
    fuse = "import sys, shearling_runtime; shearling_runtime.write_fused(*sys.argv[1:])"
    assert run_alone(fresh, "python", "-c", fuse, decoder / "openvino", tmp_path / "fused").returncode == 0
    for model in (decoder / "openvino", tmp_path / "fused"):
        command = [tmp_path / "generate", model, PROMPTS[0], str(NEW_TOKENS)]
        program = subprocess.run(command, env={"PATH": ""}, capture_output=True, text=True, check=False, timeout=300)
        assert program.returncode == 0, program.stderr
        assert program.stdout == ours["text"] + "\n"


def test_it_measures(fresh, export):
    options = (
        "--bench",
        "--threads",
        "1",
        "--prompt-tokens",
        "16",
        "--max-new-tokens",
        "4",
        "--repeats",
        "2",
        "--json",
    )
    done = run_alone(fresh, "shearling-run", export / "openvino", *options)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert (measured["prompt_tokens"], measured["new_tokens"], len(measured["runs"])) == (16, 4, 2)
    assert 0 < measured["tpot_s"] < 60


def test_the_benchmark_beside_the_toolchain_lets_both_do_the_same_work(wheel, export, capsys):
    options = ["--rounds", "2", "--prompt-tokens", "16", "--max-new-tokens", "4", "--repeats", "2", "--threads", "1"]
    code = runtime_wheel.main([str(export / "openvino"), "--wheel", str(wheel), *options])
    told = json.loads(capsys.readouterr().out)
    assert (code == 1) == (told["verdict"] == "slower")
    assert told["packed"]
    assert told["toolchain"]["settings"]["INFERENCE_NUM_THREADS"] == "1"
    assert len(told["rounds"]) == 2
    for measured in told["rounds"]:
        ratio = measured["wheel"]["tpot_s"] / measured["toolchain"]["tpot_s"]
        # A token of a tiny model on a busy machine: a unit that is mistaken would be far outside.
        assert 0.05 < ratio < 20


def test_its_bill_of_materials_needs_nothing_and_offers_the_runtimes(wheel):
    bill = json.loads(bill_of_materials.write_bill(wheel, build_wheels.RUNTIME).read_text(encoding="utf-8"))
    assert bill["metadata"]["component"]["purl"].startswith("pkg:pypi/shearling-runtime@2026.")
    components = {component["name"]: component["scope"] for component in bill["components"]}
    assert components.keys() >= {"openvino", "openvino-genai", "onnxruntime", "numpy"}
    assert set(components.values()) == {"optional"}


def test_a_damaged_file_is_refused(fresh, export, tmp_path):
    broken = Path(shutil.copytree(export / "openvino", tmp_path / "broken"))
    weights = broken / "openvino_model.bin"
    content = bytearray(weights.read_bytes())
    content[content.index(b"SHEARLNG") + 8] ^= 0xFF
    weights.write_bytes(content)
    done = run_alone(fresh, "shearling-run", broken, "--prompt", PROMPTS[0])
    assert done.returncode == 3
    assert f"error: {broken}: OpenVINO cannot" in done.stderr
    assert "Traceback" not in done.stderr


ONNX_LOGITS = """
import sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feed = {"input_ids": [[5, 6]], "attention_mask": [[1, 1]], "position_ids": [[0, 1]]}
feed = {name: np.asarray(value, np.int64) for name, value in feed.items()}
for node in session.get_inputs():
    if node.name.startswith("past_key_values."):
        feed[node.name] = np.zeros([1, node.shape[1], 0, node.shape[3]], np.float32)
print(session.run(["logits"], feed)[0].tobytes().hex())
"""
"""Of two tokens, by a session with `options`."""


def test_onnx_runtime_says_what_the_toolchain_says(fresh, export):
    path = export / "onnx" / MODEL_ONNX
    ours = "import shearling_runtime; options = shearling_runtime.session_options()"
    alone = run_alone(fresh, "python", "-c", ours + ONNX_LOGITS, path)
    assert alone.returncode == 0, alone.stderr
    theirs = f"""
from pathlib import Path
from shearling.kernel.onnx_runtime_extension import session_options_for
options = session_options_for(Path({str(path)!r}))"""
    command = [sys.executable, "-c", theirs + ONNX_LOGITS, str(path)]
    toolchain = subprocess.run(command, capture_output=True, text=True, check=False)
    assert toolchain.returncode == 0, toolchain.stderr
    assert len(alone.stdout) > 1000
    assert alone.stdout == toolchain.stdout


def with_wheel(unpacked: Path, question: str, *arguments: str | Path, **environment: str) -> str:
    """The last line of a program that the toolchain's Python runs with the wheel on its path, but no compiler."""
    done = subprocess.run(
        [sys.executable, "-c", question, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": f"{unpacked}:{ROOT}", "PATH": "", "CXX": "", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_optimum_loads_it(unpacked, export):
    question = f"""
import sys, shearling_runtime
from tests.support.tiny_models import tiny_tokenizer
model = shearling_runtime.load_causal_lm(sys.argv[1], ov_config={{"INFERENCE_PRECISION_HINT": "f32"}})
inputs = tiny_tokenizer()({PROMPTS[0]!r}, return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens={NEW_TOKENS}, min_new_tokens={NEW_TOKENS}, do_sample=False)
print(answer[0, inputs["input_ids"].shape[1]:].tolist())
"""
    made = json.loads(with_wheel(unpacked, question, export / "openvino"))
    options = ("--prompt", PROMPTS[0], "--max-new-tokens", str(NEW_TOKENS), "--no-chat", "--json")
    assert made == json.loads(serve("generate", export / "openvino", *options).stdout)["token_ids"]


def test_the_toolchain_takes_the_libraries_of_its_own_sources(unpacked, tmp_path):
    question = """
from shearling.kernel.build import build_library, build_onnx_runtime_library
from shearling.kernel.library import kernels_in_use
kernels_in_use()
print(build_library(), build_onnx_runtime_library())
"""
    found = with_wheel(unpacked, question, SHEARLING_CACHE=str(tmp_path / "cache")).split()
    assert found == [
        str(unpacked / "shearling_runtime" / "libraries" / f"libshearling_{name}.so")
        for name in ("openvino", "onnxruntime")
    ]
    assert not (tmp_path / "cache").exists()


def test_the_toolchain_compiles_sources_that_have_changed(unpacked, tmp_path):
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "other.cpp").write_text("int x;\n")
    question = """
import sys
from pathlib import Path
from shearling.errors import CompilerMissing
from shearling.kernel.build import build_library
try:
    print(build_library(sources=Path(sys.argv[1])))
except CompilerMissing:
    print("needs a compiler")
"""
    assert with_wheel(unpacked, question, tmp_path / "sources") == "needs a compiler"
