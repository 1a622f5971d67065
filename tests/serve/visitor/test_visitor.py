"""Models of any exporter, measured where nothing of this project is: the tokens are those of torch."""

from __future__ import annotations

import subprocess
import venv
import warnings
from pathlib import Path

import openvino
import pytest
import torch

from serve.bench.benchmark import find_deployments
from serve.bench.worker_process import WorkerProcess
from serve.runtimes.runtime import RunOptions
from serve.runtimes.visiting import missing_modules
from serve.visitor.own_process import usable_cpus
from shearling.errors import (
    ArtefactError,
    CheckpointUnsafe,
    EnvironmentFault,
    PackageMissing,
    ShearlingError,
    UsageError,
)
from shearling.target import parse_target
from tests.support.environments import environment_seeing_ours, environment_with
from tests.support.once_per_run import writable_copy
from tests.support.tiny_models import llama_tied_gqa

FP32 = RunOptions(precision="fp32", threads=1)
ROWS = ((5, 9, 200, 31, 7), (3, 3, 17, 250, 99))
NEW = 6


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment_seeing_ours(tmp_path_factory.mktemp("foreign") / "environment")


@pytest.fixture(scope="module")
def expected() -> list[int]:
    prompt = torch.tensor(ROWS)
    found = llama_tied_gqa().generate(prompt, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    return found[0, prompt.shape[1] :].tolist()


@pytest.fixture(scope="module")
def other_exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """IRs that no `python -m export` writes: the cache as inputs and outputs, and none at all."""
    from optimum.exporters.openvino import export_from_model

    root = tmp_path_factory.mktemp("others")
    with warnings.catch_warnings():
        # Tracing warns of every Python branch in transformers' code.
        warnings.simplefilter("ignore")
        export_from_model(llama_tied_gqa(), output=root / "stateless", task="text-generation-with-past", stateful=False)
        export_from_model(llama_tied_gqa(), output=root / "no-cache", task="text-generation")
    return root


class Bigrams(torch.nn.Module):
    """What somebody converts by hand: token ids in, scores out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table = torch.nn.Embedding(300, 300)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids)


def tokens_of(target: str, *, options: RunOptions = FP32, rows: tuple[tuple[int, ...], ...] = ROWS) -> tuple[int, ...]:
    (deployment,) = find_deployments([parse_target(target)], options)
    with WorkerProcess(deployment, options) as worker:
        report = worker.load()
        assert report.facts.settings["python"]
        worker.generate(rows, new_tokens=2)  # what one call leaves behind must not reach the next
        timed = worker.generate(rows, new_tokens=NEW)
        worker.settle()
        assert worker.report().peak_bytes > 0
    assert len(timed.generation.gaps_s) == NEW - 1
    assert 0 < timed.generation.ttft_s < timed.generation.total_s <= timed.wall_s
    return timed.generation.token_ids


@pytest.mark.parametrize("options", [FP32, FP32.model_copy(update={"genai": False})], ids=["genai", "alone"])
def test_openvino_continues_like_torch(export: Path, environment: Path, expected: list[int], options) -> None:
    assert list(tokens_of(f"{export}@format=openvino,environment={environment}", options=options)) == expected


@pytest.mark.parametrize("options", [FP32, FP32.model_copy(update={"genai": False})], ids=["genai", "alone"])
def test_a_file_without_our_operators_takes_any_choice(
    export: Path, environment: Path, expected: list[int], options
) -> None:
    place = f"{export}@format=openvino,environment={environment}"
    assert list(tokens_of(f"{place},PACKED=always", options=options)) == expected
    with pytest.raises(UsageError, match="PACKED is 'sometimes'"):
        tokens_of(f"{place},PACKED=sometimes", options=options)


@pytest.mark.parametrize("model_format", ["onnx", "torch"])
def test_other_runtimes_continue_like_torch(
    export: Path, environment: Path, expected: list[int], model_format: str
) -> None:
    assert list(tokens_of(f"{export}@format={model_format},environment={environment}")) == expected


@pytest.mark.parametrize("kind", ["stateless", "no-cache"])
def test_every_kind_of_cache_of_another_exporter(
    other_exports: Path, environment: Path, expected: list[int], kind: str
) -> None:
    file = other_exports / kind / "openvino_model.xml"
    assert ("past_key_values" in file.read_text()) == (kind == "stateless")
    assert list(tokens_of(f"{file}@environment={environment}")) == expected
    # A file by itself needs no environment, and no tokenizer.
    assert list(tokens_of(str(file))) == expected


@pytest.mark.parametrize("shape", ["free", "fixed"])
def test_an_ir_converted_by_hand(tmp_path: Path, shape: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = openvino.convert_model(Bigrams(), example_input=torch.ones(1, 4, dtype=torch.long))
    if shape == "fixed":
        model.reshape([1, 4])
    openvino.save_model(model, tmp_path / "mine.xml", compress_to_fp16=False)
    table, token, expected = Bigrams().table.weight, ROWS[0][-1], []
    for _ in range(NEW):
        token = int(table[token].argmax())
        expected.append(token)
    assert list(tokens_of(str(tmp_path / "mine.xml"), rows=ROWS[:1])) == expected


def test_nothing_of_ours_is_there(environment: Path) -> None:
    question = "import importlib.util, sys; print(*map(importlib.util.find_spec, ('shearling', 'serve', 'openvino')))"
    done = subprocess.run(
        [environment / "bin" / "python", "-I", "-c", question], capture_output=True, text=True, check=True
    )
    ours, serve, theirs = done.stdout.split(" ", 2)
    assert (ours, serve) == ("None", "None")
    assert theirs.strip() != "None"


def test_both_sides_of_a_comparison_are_visited(export: Path, environment: Path) -> None:
    named, bare, other = find_deployments(
        [
            parse_target(f"{export}@environment={environment}"),
            parse_target(export),
            parse_target(f"{export}@format=onnx"),
        ],
        RunOptions(),
    )
    assert (named.engine, bare.engine, other.engine) == ("genai", "genai", None)
    assert bare.environment is None


@pytest.mark.skipif(len(usable_cpus()) < 2, reason="one CPU is all there is")
@pytest.mark.parametrize("written", ["ours", "genai", "ir"])
def test_a_process_of_one_thread_stays_on_the_cpu_that_it_was_pinned_to(
    export: Path, environment: Path, other_exports: Path, written: str
) -> None:
    label = {
        "ours": f"{export}@format=openvino",
        "genai": f"{export}@format=openvino,environment={environment}",
        "ir": f"{other_exports / 'stateless' / 'openvino_model.xml'}",
    }
    [deployment] = find_deployments([parse_target(label[written])], FP32)
    with WorkerProcess(deployment, FP32) as process:
        process.load()
        process.generate(ROWS[:1], new_tokens=NEW)
        process.settle()
        process.generate(ROWS[:1], new_tokens=NEW)
        assert process.report().cpus == usable_cpus()[-1:]


@pytest.mark.parametrize("visited", [False, True])
def test_the_cache_is_told_that_the_file_asks_for(export: Path, environment: Path, visited: bool) -> None:
    """OpenVINO's own default is another one than what the converter writes into the file."""
    import openvino

    own = openvino.Core().compile_model(export / "openvino" / "openvino_model.xml", "CPU")
    kind = own.get_property("KV_CACHE_PRECISION").get_type_name()
    label = f"{export}@format=openvino" + (f",environment={environment}" if visited else "")
    [deployment] = find_deployments([parse_target(label)], RunOptions())
    with WorkerProcess(deployment, RunOptions()) as process:
        told = process.load().facts.settings["KV_CACHE_PRECISION"]
    assert told == {"float16": "f16", "float32": "f32"}.get(kind, kind)
    assert told == "f16"


def test_a_property_that_means_nothing_there_is_refused_for_both_sides(export: Path, environment: Path) -> None:
    semi = f"{export}@format=torch,SEMI_STRUCTURED=YES"
    for targets in ([f"{semi},environment={environment}"], [semi, f"{export}@format=torch,environment={environment}"]):
        with pytest.raises(UsageError, match="SEMI_STRUCTURED is unknown where torch runs without this toolchain"):
            find_deployments([parse_target(target) for target in targets], FP32)


def test_environments_that_cannot_serve(export: Path, environment: Path, tmp_path: Path) -> None:
    def find(place: Path, *, model: str | Path = export, device: str = "CPU") -> None:
        find_deployments([parse_target(f"{model}@environment={place}")], RunOptions(device=device))

    with pytest.raises(PackageMissing, match="no virtual environment here"):
        find(tmp_path)
    bare = environment_with(tmp_path / "bare", module="unrelated", source="", distribution="unrelated")
    with pytest.raises(PackageMissing, match=r"numpy and openvino cannot be .*-m pip install numpy openvino"):
        find(bare)
    for place, said, words in (
        ("old", "[[3, 8], []]", r"its Python is 3\.8"),
        ("broken", "nonsense", "does not answer"),
    ):
        python = tmp_path / place / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\necho '{said}'\n")
        python.chmod(0o755)
        with pytest.raises(PackageMissing, match=words):
            find(python.parent.parent)
    with pytest.raises(EnvironmentFault, match="on the CPU alone in another environment"):
        find(environment, model=export / "onnx", device="CUDA")


def test_an_environment_whose_python_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shearling.virtual_environment.ANSWER_S", 0.2)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o755)
    (tmp_path / "model.xml").write_text("<net/>")
    with pytest.raises(PackageMissing, match=r"does not answer: nothing was said for 0\.2 s"):
        find_deployments([parse_target(f"{tmp_path / 'model.xml'}@environment={tmp_path}")], RunOptions())


def test_a_model_that_could_run_code_is_not_loaded(export: Path, environment: Path, tmp_path: Path) -> None:
    model = writable_copy(export / "model", tmp_path / "model")
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text.replace("{", '{"auto_map": {"AutoModel": "evil.Model"},', 1))
    with pytest.raises(CheckpointUnsafe, match="auto_map"):
        find_deployments([parse_target(f"{model}@environment={environment}")], RunOptions())


def test_a_sparse_file_needs_its_operators_there(environment: Path, tmp_path: Path) -> None:
    xml = tmp_path / "sparse" / "openvino_model.xml"
    xml.parent.mkdir()
    xml.write_text('<net name="sparse" version="11"><layers><layer version="shearling"/></layers></net>')
    (deployment,) = find_deployments([parse_target(f"{xml}@environment={environment}")], FP32)
    with (
        WorkerProcess(deployment, FP32) as worker,
        pytest.raises(PackageMissing, match=r"install shearling_runtime-\*\.whl"),
    ):
        worker.load()


def test_what_cannot_be_run_there_says_why(export: Path, environment: Path, tmp_path: Path) -> None:
    def load(target: str, options: RunOptions = FP32) -> None:
        (deployment,) = find_deployments([parse_target(target)], options)
        with WorkerProcess(deployment, options) as worker:
            worker.load()

    cut = writable_copy(export / "openvino", tmp_path / "cut")
    (cut / "openvino_model.bin").write_bytes(b"")
    with pytest.raises(ArtefactError, match="cannot load it"):
        load(f"{cut}@environment={environment}")
    with pytest.raises(EnvironmentFault, match="computes in fp32, bf16 was asked for"):
        load(f"{export}@format=onnx,environment={environment}", RunOptions(precision="bf16"))
    with pytest.raises(ShearlingError, match="NO_SUCH_PROPERTY"):
        load(f"{export}@NO_SUCH_PROPERTY=1,environment={environment}")
    strange = openvino.opset13.parameter([1, 4], dtype=openvino.Type.f32, name="pixels")
    other = openvino.opset13.parameter([1, 4], dtype=openvino.Type.f32, name="depth")
    model = openvino.Model([openvino.opset13.add(strange, other)], [strange, other], "picture")
    openvino.save_model(model, tmp_path / "picture.xml")
    with pytest.raises(ArtefactError, match=r"inputs that are not known: .*depth"):
        load(str(tmp_path / "picture.xml"))


def test_the_python_that_runs_sees_what_its_user_gave_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a runtime on PYTHONPATH; another environment is asked for what is its own."""
    (tmp_path / "given_by_the_user.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert missing_modules(None, ["given_by_the_user"]) == []
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    assert missing_modules(environment, ["given_by_the_user"]) == ["given_by_the_user"]
