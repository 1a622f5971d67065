"""Exports of models that are large for their memory: peaks, the type of the weights, kills and full disks."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from export.request import ExportRequest
from export.stage import export_frozen, export_subnet
from shearling.artefact import open_artefact, unfinished_artefact
from shearling.elastic.sub_adapter import load_sub_adapter
from shearling.model.arithmetic import computed_in
from shearling.model.checkpoint import load_model, save_model
from shearling.model.weight_shards import StoredWeights
from tests.support.memory import PeakOfPrivateMemory
from tests.support.stage_commands import run_stage
from tests.support.tiny_models import save_tiny, tiny_tokenizer
from tests.support.tiny_subnets import run_with_best
from train.base.artefact import import_base

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it, torch.export of its own tree functions
IDS = torch.tensor([[5, 17, 33, 60, 2, 9]])


@pytest.fixture(scope="module")
def halved(tmp_path_factory):
    """A run whose frozen model is in bfloat16."""
    directory = tmp_path_factory.mktemp("halved")
    source = save_tiny("llama_tied_gqa", directory / "source")
    save_model(load_model(source).to(torch.bfloat16), tiny_tokenizer(), source)
    return run_with_best(directory, masked=True)


def request_for(path, *formats, **options):
    return ExportRequest(output=path, formats=formats, **options)


def test_a_bfloat16_model_stays_one(halved, tmp_path):
    request = request_for(tmp_path / "export", "hf", "peft", "openvino", "onnx", weight_format="int8")
    exported = export_subnet(halved.path / "best.json", request)
    stored = StoredWeights(exported.path / "model")
    assert {tensor.dtype for tensor in stored.tensors.values()} == {"bfloat16"}
    assert json.loads((exported.path / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    assert exported.report.violations == []
    assert [check.precision for check in exported.report.parity if check.candidate == "merged"] == ["bf16"]
    assert {check.format for check in exported.report.zeros} == {"model", "openvino", "onnx"}
    assert all(check.zeros == check.pruned > 0 for check in exported.report.zeros)
    # Merged in float32, and rounded once.
    merged = load_model(exported.path / "model", dtype=None)
    adapted = load_sub_adapter(halved.sparse, exported.path / "adapter")
    for path, layer in adapted.named_modules():
        if hasattr(layer, "merged_weight"):
            expected = layer.merged_weight().to(torch.bfloat16)
            assert torch.equal(merged.get_submodule(path).weight, expected), path
    with torch.inference_mode(), computed_in(merged, torch.float32):
        assert torch.isfinite(merged(IDS).logits).all()


def command(*arguments):
    return [sys.executable, "-m", "export", *map(str, arguments)]


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_nothing_that_is_read(halved, tmp_path):
    output = tmp_path / "export"
    arguments = command("--subnet", halved.path / "best.json", "--formats", "hf,openvino", "--output", output)
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = unfinished_artefact(output)
    deadline_s = time.monotonic() + 120
    while not list(partial.glob("openvino/.raw-*")) and time.monotonic() < deadline_s and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it finished before it could be killed"
    assert not output.exists()
    assert list(partial.glob(".merged-*/model.safetensors"))
    exported = export_subnet(halved.path / "best.json", request_for(output, "hf", "openvino"))
    assert open_artefact(output, kind="export") == exported.artefact
    assert not partial.exists()
    assert not [path for path in output.rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize("share", [0.5, 1.2])
def test_a_full_disk_is_said_and_leaves_nothing(halved, tmp_path, share):
    """In the middle of the merged weights, and behind them: in the graph, in float32."""
    output = tmp_path / "export"
    limit = int(share * (halved.sparse / "model.safetensors").stat().st_size)
    options = ("--subnet", halved.path / "best.json", "--formats", "hf,onnx", "--output", output, "--json")
    # Python ignores the signal that comes with it.
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    done = run_stage("export", *options, code=4, before=limited)
    assert "cannot write" in done.stderr
    assert not output.exists()
    assert not unfinished_artefact(output).exists()


LAYERS, HIDDEN, INNER, VOCABULARY = 8, 1024, 2816, 8000


def write_model(directory, layers, hidden, inner):
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    directory.mkdir(parents=True)
    save_model(LlamaForCausalLM(config), tiny_tokenizer(), directory / "source")
    return import_base(directory / "source", directory / "base", model_id="random/llama").path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Almost no weights, which shows what the libraries take; and 400 MB of them."""
    directory = tmp_path_factory.mktemp("sizes")
    return write_model(directory / "small", 2, 64, 128), write_model(directory / "large", LAYERS, HIDDEN, INNER)


@pytest.mark.slow
def test_a_checkpoint_is_written_a_matrix_at_a_time(models, tmp_path):
    """Pages of the mapped source do not count: the system takes them back soon or late."""
    small, large = models
    export_frozen(small, request_for(tmp_path / "small", "hf", verify="off"))  # loads the libraries
    with PeakOfPrivateMemory() as memory:
        export_frozen(large, request_for(tmp_path / "large", "hf", verify="off"))
    assert memory.growth_bytes <= 0.25 * StoredWeights(large).size_bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("formats", "weights", "most"),
    [("openvino", "fp32", 0.5), ("openvino", "int8", 0.6), ("onnx", "int8", 0.9)],
)
def test_an_export_holds_a_part_of_its_model(models, tmp_path, formats, weights, most):
    """Written without a gate, which would run the file. A model that is loaded as a whole takes its size at least."""
    peaks = []
    for number, base in enumerate(models):
        output = tmp_path / str(number)
        options = ["--formats", formats, "--weight-format", weights, "--verify", "off", "--output", output]
        exporting = command("--base", base, *options)
        process = subprocess.Popen(exporting, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        with PeakOfPrivateMemory(process.pid) as memory:
            _, log = process.communicate()
        assert process.returncode == 0, log
        peaks.append(memory.growth_bytes)
    assert peaks[1] - peaks[0] <= most * StoredWeights(models[1]).size_bytes
