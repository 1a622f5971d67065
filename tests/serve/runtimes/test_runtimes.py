"""Three real runtimes on one model: the same tokens, the same text, and what each refuses."""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from serve.generate import generate_text
from serve.runtimes.deployment import find_deployment
from serve.runtimes.device import check_device
from serve.runtimes.onnx_provider import PROVIDERS, require_provider
from serve.runtimes.runtime import Decoding, RunOptions, Runtime, check_lengths, load_runtime
from serve.runtimes.semi_structured import is_2of4, use_semi_structured
from shearling.errors import ArtefactCorrupt, ArtefactMissing, DeviceUnavailable, ModelUnsupported, UsageError
from shearling.kernel.loading.genai_stream import stream_text
from shearling.kernel.openvino_core import openvino_core
from shearling.target import Target, parse_target
from tests.support.signal_stack import leave_signal_stack

FP32 = RunOptions(precision="fp32", threads=1)
FORMATS = ("openvino", "onnx", "torch")
PROMPT = "Area man wins award for the best headline é 日"


@pytest.fixture(scope="module")
def runtimes(export: Path) -> dict[str, Runtime]:
    return {choice: load_runtime(find_deployment(Target(export, format=choice)), FP32) for choice in FORMATS}


@pytest.mark.parametrize("chat", [False, True])
def test_all_runtimes_agree_token_for_token(runtimes: dict[str, Runtime], chat: bool) -> None:
    prompts = {name: runtime.encode(PROMPT, chat=chat) for name, runtime in runtimes.items()}
    assert prompts["openvino"] == prompts["onnx"] == prompts["torch"]
    runs = {name: runtime.generate([prompts[name]], Decoding(max_new_tokens=24)) for name, runtime in runtimes.items()}
    assert len(runs["torch"].token_ids) == 24
    assert runs["openvino"].token_ids == runs["onnx"].token_ids == runs["torch"].token_ids
    texts = {runtimes[name].decode(run.token_ids) for name, run in runs.items()}
    assert len(texts) == 1


@pytest.mark.parametrize("choice", FORMATS)
def test_a_template_that_refuses_a_lone_turn(copy_of, choice: str) -> None:
    directory = copy_of("model" if choice == "torch" else choice)
    template = "{{ raise_exception('the system speaks first') }}"
    (directory / "chat_template.jinja").write_text(template)
    tokenizer = directory / "openvino_tokenizer.xml"
    if tokenizer.exists():
        text = tokenizer.read_text()
        tokenizer.write_text(re.sub(r'(?<=<chat_template value=")[^"]*', template, text))
        assert template in tokenizer.read_text()
    runtime = load_runtime(find_deployment(Target(directory)), FP32)
    assert runtime.has_chat_template()
    with pytest.raises(ModelUnsupported, match=r"template fails: .*the system speaks first.*Use --no-chat"):
        runtime.encode(PROMPT, chat=True)
    assert runtime.encode(PROMPT, chat=False)
    runtime.close()


@pytest.mark.parametrize("choice", FORMATS)
def test_timings_are_complete_and_add_up(runtimes: dict[str, Runtime], choice: str) -> None:
    run = runtimes[choice].generate([[5, 6, 7]], Decoding(max_new_tokens=16))
    assert len(run.gaps_s) == 15
    assert min(run.gaps_s) > 0
    assert run.tpot_s == pytest.approx(sum(run.gaps_s) / 15)
    assert run.ttft_s + sum(run.gaps_s) <= run.total_s * 1.05


@pytest.mark.parametrize("choice", FORMATS)
def test_a_batch_is_what_its_first_row_is_alone(runtimes: dict[str, Runtime], choice: str) -> None:
    rows = [[5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]]
    alone = runtimes[choice].generate(rows[:1], Decoding(max_new_tokens=12))
    batch = runtimes[choice].generate(rows, Decoding(max_new_tokens=12))
    assert batch.token_ids == alone.token_ids
    others = [runtimes[choice].generate([row], Decoding(max_new_tokens=12)).token_ids for row in rows[1:]]
    assert batch.other_rows == tuple(others)
    assert alone.other_rows == ()
    assert len(batch.gaps_s) == 11
    assert batch.ttft_s + sum(batch.gaps_s) <= batch.total_s * 1.05


@pytest.mark.parametrize("choice", FORMATS)
def test_an_end_token_ends_it_and_is_not_shown(runtimes: dict[str, Runtime], choice: str) -> None:
    runtime = runtimes[choice]
    free = runtime.generate([[5, 6, 7]], Decoding(max_new_tokens=24)).token_ids
    end = free[8]
    stopped = runtime.generate([[5, 6, 7]], Decoding(max_new_tokens=24, end_ids=frozenset({end})))
    assert stopped.token_ids == free[: free.index(end)]


@pytest.mark.parametrize("choice", FORMATS)
def test_streamed_pieces_are_the_text(runtimes: dict[str, Runtime], choice: str) -> None:
    runtime = runtimes[choice]
    pieces: list[str] = []
    work = Decoding(max_new_tokens=24, end_ids=frozenset({2}), on_text=pieces.append)
    run = runtime.generate([runtime.encode(PROMPT, chat=False)], work)
    assert len(pieces) > 1
    assert "".join(pieces) == runtime.decode(run.token_ids)


@pytest.mark.parametrize("choice", FORMATS)
def test_what_a_reader_of_pieces_raises_ends_the_text(runtimes: dict[str, Runtime], choice: str, capfd) -> None:
    runtime = runtimes[choice]
    pieces: list[str] = []

    def read(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 2:
            raise OSError(errno.ENOSPC, "no room for a second piece")

    prompt = [runtime.encode(PROMPT, chat=False)]
    with pytest.raises(OSError, match="no room for a second piece"):
        runtime.generate(prompt, Decoding(max_new_tokens=24, on_text=read))
    assert len(pieces) == 2
    assert capfd.readouterr() == ("", "")
    # A text that was left behind leaves nothing for the next one.
    whole: list[str] = []
    runtime.generate(prompt, Decoding(max_new_tokens=24, on_text=whole.append))
    assert "".join(whole).startswith("".join(pieces))


@pytest.mark.parametrize("choice", FORMATS)
def test_an_interruption_of_whatever_runs_ends_a_text(runtimes: dict[str, Runtime], choice: str) -> None:
    leave_signal_stack()
    runtime = runtimes[choice]
    pieces: list[str] = []
    later = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))

    def read(piece: str) -> None:
        if not pieces:
            later.start()
        pieces.append(piece)
        time.sleep(0.01)

    def make() -> None:
        runtime.generate([[5, 6, 7]], Decoding(max_new_tokens=240, on_text=read))
        later.join()

    # A child of a background job ignores SIGINT until told otherwise.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            make()
    finally:
        signal.signal(signal.SIGINT, previous)
    assert 0 < len(pieces) < 100


def test_an_interruption_ends_a_text_whose_pieces_nobody_asked_for(export: Path, monkeypatch) -> None:
    leave_signal_stack()

    def stream(generate: Callable[[Callable[[str], Any]], Any], on_text: Callable[[str], None]) -> Any:
        def interrupted(put: Callable[[str], Any]) -> Any:
            os.kill(os.getpid(), signal.SIGINT)
            return generate(put)

        return stream_text(interrupted, on_text)

    monkeypatch.setattr("serve.runtimes.openvino_decoding.stream_text", stream)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            generate_text(Target(export, format="openvino"), prompt=PROMPT, max_new_tokens=200, options=FP32)
    finally:
        signal.signal(signal.SIGINT, previous)


@pytest.mark.parametrize("choice", FORMATS)
def test_one_token_has_no_gap(runtimes: dict[str, Runtime], choice: str) -> None:
    run = runtimes[choice].generate([[5]], Decoding(max_new_tokens=1))
    assert (len(run.token_ids), run.gaps_s, run.tpot_s, run.tokens_per_s) == (1, (), None, None)


def test_facts_are_what_really_runs(runtimes: dict[str, Runtime]) -> None:
    facts = {name: runtime.facts for name, runtime in runtimes.items()}
    assert {item.precision for item in facts.values()} == {"fp32"}
    assert facts["onnx"].provider == "CPUExecutionProvider"
    assert facts["openvino"].settings["KV_CACHE_PRECISION"] == "f32"
    assert facts["openvino"].settings["INFERENCE_NUM_THREADS"] == facts["torch"].settings["threads"] == "1"
    assert "perf_metrics" in facts["openvino"].timing_source


def test_a_precision_that_the_file_does_not_hold(export: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="computes in fp32, bf16 was asked for"):
        load_runtime(find_deployment(Target(export, format="onnx")), RunOptions(precision="bf16"))


@pytest.mark.parametrize(
    ("choice", "device", "remedy"),
    [
        ("openvino", "GPU", "intel-opencl-icd"),
        ("openvino", "GPU.3", "intel-opencl-icd"),
        ("openvino", "CUDA", "--format onnx"),
        ("openvino", "AUTO", "--device CPU"),
        ("onnx", "CUDA", "onnxruntime-gpu"),
        ("onnx", "GPU", "--format openvino"),
        ("onnx", "TENSORRT", "onnxruntime-gpu"),
        ("torch", "CUDA", "CUDA build"),
        ("torch", "GPU", "--format openvino"),
    ],
)
def test_a_device_that_is_not_there(choice, device: str, remedy: str) -> None:
    if _present(choice, device):
        pytest.skip(f"{choice} has {device} here")
    with pytest.raises(DeviceUnavailable, match=remedy):
        check_device(choice, device)


def test_a_provider_that_onnx_runtime_replaced_silently(export: Path) -> None:
    import onnxruntime

    if _present("onnx", "CUDA"):
        pytest.skip("CUDA is here")
    with warnings.catch_warnings():
        # ORT warns and falls back: the very case.
        warnings.simplefilter("ignore")
        session = onnxruntime.InferenceSession(
            str(export / "onnx" / "model.onnx"), providers=["CUDAExecutionProvider", "CPUExecutionProvider"]
        )
    with pytest.raises(DeviceUnavailable, match="replaced CUDAExecutionProvider by CPUExecutionProvider"):
        require_provider(session.get_providers(), "CUDA")


@pytest.mark.parametrize(
    ("prompt", "new", "match"),
    [(0, 4, "empty"), (4, 0, "0 new tokens"), (250, 7, "exceed the context of 256"), (300, 1, "exceed")],
)
def test_work_that_does_not_fit(export: Path, prompt: int, new: int, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        check_lengths(prompt, new, deployment=find_deployment(Target(export)))
    check_lengths(250, 6, deployment=find_deployment(Target(export)))


def test_what_is_no_answer_is_not_taken_for_no(export: Path) -> None:
    with pytest.raises(UsageError, match="it is YES or NO, not yes"):
        load_runtime(find_deployment(parse_target(f"{export}@format=torch,SEMI_STRUCTURED=yes")), FP32)


def test_semi_structured_kernels_up_to_the_device(export: Path) -> None:
    weight = torch.zeros(64, 64)
    weight[:, ::4] = weight[:, 1::4] = 1.0
    assert is_2of4(weight)
    assert not is_2of4(weight[:, :48])
    weight[7, 2] = 1.0
    assert not is_2of4(weight)
    with pytest.raises(ModelUnsupported, match="no layer has the 2:4 pattern"):
        load_runtime(find_deployment(parse_target(f"{export}@format=torch,SEMI_STRUCTURED=YES")), FP32)
    weight[7, 2] = 0.0
    layer = torch.nn.Linear(64, 64, bias=False)
    layer.weight.data.copy_(weight)
    if not torch.cuda.is_available():
        with pytest.raises(DeviceUnavailable, match="compute capability"):
            use_semi_structured(layer, where=export)
        return
    layer = layer.to("cuda", torch.bfloat16)
    expected = layer(torch.ones(8, 64, device="cuda", dtype=torch.bfloat16))
    assert use_semi_structured(layer, where=export) == 1
    torch.testing.assert_close(layer(torch.ones(8, 64, device="cuda", dtype=torch.bfloat16)), expected)


def test_properties_hold_for_one_deployment_and_unknown_ones_for_none(export: Path) -> None:
    deployment = find_deployment(parse_target(f"{export}@DYNAMIC_QUANTIZATION_GROUP_SIZE=64"))
    assert load_runtime(deployment, RunOptions()).facts.settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == "64"
    assert (
        load_runtime(find_deployment(Target(export)), RunOptions(hint="throughput")).facts.settings["PERFORMANCE_HINT"]
        == "THROUGHPUT"
    )
    with pytest.raises(UsageError, match="OpenVINO refuses"):
        load_runtime(find_deployment(parse_target(f"{export}@NO_SUCH_PROPERTY=1")), RunOptions())
    with pytest.raises(UsageError, match="no property that onnx knows"):
        find_deployment(parse_target(f"{export}@format=onnx,NUM_STREAMS=1"))


def test_an_ir_without_its_tokenizer(copy_of) -> None:
    directory = copy_of("openvino")
    (directory / "openvino_detokenizer.xml").unlink()
    with pytest.raises(ArtefactMissing, match=r"openvino_detokenizer\.xml"):
        load_runtime(find_deployment(Target(directory)), FP32)


@pytest.mark.parametrize(
    ("choice", "file"), [("openvino", "openvino_model.bin"), ("onnx", "model.onnx.data"), ("onnx", "model.onnx")]
)
def test_truncated_files_of_a_bare_directory(copy_of, choice: str, file: str) -> None:
    path = copy_of(choice) / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ArtefactCorrupt, match="cannot load"):
        load_runtime(find_deployment(Target(path.parent)), FP32)


def test_an_onnx_model_without_a_cache(copy_of) -> None:
    import onnx
    from onnx import TensorProto, helper

    directory = copy_of("onnx")
    tokens = helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "S"])
    logits = helper.make_tensor_value_info("logits", TensorProto.INT64, [1, "S"])
    graph = helper.make_graph([helper.make_node("Identity", ["input_ids"], ["logits"])], "bare", [tokens], [logits])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), directory / "model.onnx"
    )
    with pytest.raises(ModelUnsupported, match="no KV cache"):
        load_runtime(find_deployment(Target(directory)), FP32)


def _present(choice: str, device: str) -> bool:
    import onnxruntime

    if choice == "openvino":
        return device in openvino_core().available_devices
    if choice == "onnx":
        return PROVIDERS.get(device) in onnxruntime.get_available_providers()
    return device == "CUDA" and torch.cuda.is_available()
