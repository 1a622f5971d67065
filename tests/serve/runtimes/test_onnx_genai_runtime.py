"""A directory of fused operators in ONNX Runtime GenAI and in plain ONNX Runtime: torch's tokens, and refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from export.formats.onnx_genai import write_onnx_genai
from serve.bench.benchmark import run_benchmark
from serve.bench.workload import make_workload
from serve.runtimes.deployment import find_deployment
from serve.runtimes.device import check_device
from serve.runtimes.runtime import Decoding, RunOptions, Runtime, load_runtime
from shearling.errors import ArtefactCorrupt, DeviceUnavailable, DocumentInvalid
from shearling.kernel.build import build_onnx_runtime_library
from shearling.kernel.genai_extension import load_genai_model
from shearling.kernel.loading.genai_document import unknown_part
from shearling.target import Target, parse_target
from tests.support.exported_files import stored_as
from tests.support.fused_models import FUSED
from tests.support.onnxruntime_headers import needs_headers
from tests.support.serve_command import run_serve
from tests.support.tiny_models import tiny_tokenizer, wide_model

onnxruntime_genai = pytest.importorskip("onnxruntime_genai")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it
FP32 = RunOptions(precision="fp32", threads=1)
ROWS = [[5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]]
RUNTIMES = ("onnx-genai", "onnx")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("genai") / "stock"
    write_onnx_genai(FUSED["llama"](), tiny_tokenizer(), directory, stored_as("fp32"))
    return directory


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("genai") / "sparse"
    write_onnx_genai(wide_model(), tiny_tokenizer(), directory, stored_as("int8", kernel="sparse"))
    return directory


def load(directory: Path, choice: str) -> Runtime:
    return load_runtime(find_deployment(Target(directory, format=choice)), FP32)


def test_a_directory_goes_to_genai_unless_another_runtime_is_named(exported: Path) -> None:
    assert find_deployment(Target(exported)).format == "onnx-genai"
    assert find_deployment(Target(exported, format="onnx")).format == "onnx"


@pytest.mark.parametrize("choice", RUNTIMES)
def test_it_says_what_torch_says(exported: Path, choice: str) -> None:
    with torch.no_grad():
        tokens = FUSED["llama"]().generate(
            torch.tensor(ROWS[:1]), max_new_tokens=24, do_sample=False, eos_token_id=None
        )
    expected = tuple(tokens[0, 4:].tolist())
    runtime = load(exported, choice)
    free = runtime.generate(ROWS[:1], Decoding(max_new_tokens=24))
    assert free.token_ids == expected
    assert len(free.gaps_s) == 23
    assert runtime.generate(ROWS, Decoding(max_new_tokens=12)).token_ids == expected[:12]
    ended = runtime.generate(ROWS[:1], Decoding(max_new_tokens=24, end_ids=frozenset({expected[9]})))
    assert ended.token_ids == expected[: expected.index(expected[9])]
    runtime.close()


@pytest.mark.parametrize("setting", [{"repetition_penalty": 1.3}, {"num_beams": 2}, {"no_repeat_ngram_size": 2}])
def test_what_a_document_says_of_the_search_changes_no_token(
    exported: Path, tmp_path: Path, setting: dict[str, float]
) -> None:
    searching = Path(shutil.copytree(exported, tmp_path / "searching"))
    path = searching / "genai_config.json"
    document = json.loads(path.read_text())
    document["search"] |= {"min_length": 30, **setting}
    path.write_text(json.dumps(document))
    answers = [load(searching, choice).generate(ROWS[:1], Decoding(max_new_tokens=24)).token_ids for choice in RUNTIMES]
    assert answers[0] == answers[1]


def test_float16_is_computed_and_cached_in_both(tmp_path: Path) -> None:
    write_onnx_genai(FUSED["llama"](), tiny_tokenizer(), tmp_path, stored_as("fp16"))
    found = [load_runtime(find_deployment(Target(tmp_path, format=choice)), RunOptions()) for choice in RUNTIMES]
    assert [runtime.facts.precision for runtime in found] == ["fp16", "fp16"]
    answers = [runtime.generate(ROWS[:1], Decoding(max_new_tokens=12)).token_ids for runtime in found]
    assert answers[0] == answers[1]
    with pytest.raises(DeviceUnavailable, match="computes in fp16, fp32 was asked for"):
        load(tmp_path, "onnx-genai")


@needs_headers
@pytest.mark.parametrize("choice", RUNTIMES)
def test_a_packed_model_runs_and_leaves_nothing_behind(packed: Path, choice: str, tmp_path: Path, monkeypatch) -> None:
    build_onnx_runtime_library()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = sorted(file.name for file in packed.iterdir())
    runtime = load(packed, choice)
    assert list(tmp_path.iterdir()) == []
    assert len(runtime.generate(ROWS[:1], Decoding(max_new_tokens=24)).token_ids) == 24
    assert runtime.facts.settings["custom_operators"] == "shearling"
    assert sorted(file.name for file in packed.iterdir()) == before


@needs_headers
def test_genai_and_plain_onnx_runtime_agree_on_a_packed_model(packed: Path) -> None:
    answers = [load(packed, choice).generate(ROWS[:1], Decoding(max_new_tokens=24)).token_ids for choice in RUNTIMES]
    assert answers[0] == answers[1]


def test_a_benchmark_runs_it_beside_plain_onnx_runtime(exported: Path) -> None:
    targets = [Target(exported), parse_target(f"{exported}@format=onnx")]
    benchmark = run_benchmark(targets, options=RunOptions(threads=1), workload=make_workload(8, 4, repeats=1, warmup=0))
    assert set(benchmark.subjects[1].ratios) == {"ttft_s", "tpot_s", "total_s"}


def test_the_command_generates_and_says_with_what(exported: Path) -> None:
    done = run_serve(exported)
    assert done.returncode == 0, done.stderr
    assert "ONNX Runtime GenAI" in json.dumps(json.loads(done.stdout))


def test_a_device_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(DeviceUnavailable, match="onnxruntime-genai-cuda"):
        check_device("onnx-genai", "CUDA")


EVIL = {"custom_ops_library": "evil.so"}
MORE_THAN_A_DECODER: dict[str, tuple[str, Any]] = {
    "a library": ("model.decoder.session_options.custom_ops_library", "evil.so"),
    "a library of a stage": (
        "model.decoder.pipeline",
        [{"stage": {"filename": "model.onnx", "session_options": EVIL}}],
    ),
    "a library of a vision model": ("model.vision", {"filename": "model.onnx", "session_options": EVIL}),
    "a library of an encoder": ("model.encoder", {"filename": "model.onnx", "session_options": EVIL}),
    "a library of speech": ("model.speech", {"filename": "model.onnx", "session_options": EVIL}),
    "a library of an embedding": ("model.embedding", {"filename": "model.onnx", "session_options": EVIL}),
    "a library of a provider": (
        "model.decoder.session_options.provider_options",
        [{"QNN": {"backend_path": "evil.so"}}],
    ),
    "an address": ("model.decoder.session_options.provider_options", [{"cuda": {"gpu_external_alloc": "4096"}}]),
    "a file of a session": ("model.decoder.session_options.enable_profiling", "/tmp/profile"),
    "a decoder that is a list": ("model.decoder", ["model.onnx"]),
    "a model in another place": ("model.decoder.filename", "../model.onnx"),
}


@pytest.mark.parametrize("case", MORE_THAN_A_DECODER)
def test_a_document_that_says_more_than_a_decoder_is_refused(exported: Path, tmp_path: Path, monkeypatch, case) -> None:
    monkeypatch.setattr(onnxruntime_genai, "Model", None)  # refused before anything is loaded
    place, value = MORE_THAN_A_DECODER[case]
    broken = Path(shutil.copytree(exported, tmp_path / "broken"))
    path = broken / "genai_config.json"
    document = json.loads(path.read_text())
    *outer, last = place.split(".")
    inner = document
    for name in outer:
        inner = inner[name]
    inner[last] = value
    path.write_text(json.dumps(document))
    with pytest.raises(ArtefactCorrupt, match=f"{place}.* is not what a decoder in model.onnx has there"):
        load_genai_model(broken, session_options={})


def test_documents_of_genais_own_builder_are_known() -> None:
    """As it writes them for a decoder with a window, for CUDA."""
    sizes = ("head_size", "hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": [{"cuda": {"enable_cuda_graph": "0"}}]},
        "filename": "model.onnx",
        **dict.fromkeys(sizes, 8),
        "inputs": {"input_ids": "input_ids", "past_key_names": "past_key_values.%d.key"},
        "outputs": {"logits": "logits", "present_key_names": "present.%d.key"},
        "sliding_window": {"window_size": 16, "slide_inputs": False, "layers": [0, 2], "cache_slack": 0},
    }
    tokens = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 2}
    model = {"type": "llama", "context_length": 64, "vocab_size": 99, **tokens, "decoder": decoder}
    document = {"model": model, "search": {"do_sample": False, "max_length": 64, "temperature": 1.0, "top_k": 50}}
    assert unknown_part(document) is None
    # Of LFM2, whose layers are of two kinds.
    decoder |= {"layer_types": ["conv", "full_attention"], "conv_cache_size": 2}
    assert unknown_part(document) is None
    decoder["layer_types"] = [{"filename": "other.onnx"}]
    assert unknown_part(document) == "model.decoder.layer_types"


@pytest.mark.parametrize("change", ["filename", "json", "graph"])
def test_a_document_that_is_not_ours_is_refused(exported: Path, tmp_path: Path, change: str) -> None:
    broken = Path(shutil.copytree(exported, tmp_path / "broken"))
    path = broken / "genai_config.json"
    document = json.loads(path.read_text())
    decoder = document["model"]["decoder"]
    if change == "filename":
        decoder["filename"] = "other.onnx"
    elif change == "graph":
        (broken / "model.onnx").write_bytes(b"nonsense")
    path.write_text("{" if change == "json" else json.dumps(document))
    with pytest.raises((ArtefactCorrupt, DocumentInvalid)):
        load(broken, "onnx-genai")
    done = run_serve(broken)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_package_the_error_says_what_to_install(exported: Path) -> None:
    hidden = "import sys; sys.modules['onnxruntime_genai'] = None; import serve.__main__; serve.__main__.main()"
    command = [sys.executable, "-c", hidden, "generate", str(exported), "--prompt", "Area man"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert "pip install 'onnxruntime-genai" in " ".join(done.stderr.split())
