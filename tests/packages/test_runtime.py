"""The Python of shearling-runtime, where its libraries do not matter."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, TextIO

import pytest
import shearling_runtime
from shearling_runtime import build_facts, command, onnx_runtime, openvino
from shearling_runtime.build_facts import BuildFacts, read_build_facts
from shearling_runtime.faults import ModelUnusable, RequestFault, RuntimeUnavailable
from shearling_runtime.genai_greedy_model import GenAIGreedyModel
from shearling_runtime.greedy_model import GreedyModel

from export.formats.onnx_genai import write_onnx_genai
from export.formats.openvino import write_openvino
from shearling.kernel.loading import known_crash
from shearling.kernel.loading.packed_choice import CHOICES
from shearling.kernel.openvino_extension import machine_operators
from shearling.model.context_length import CONTEXT_KEYS
from tests.support.documents import ROOT
from tests.support.exported_files import stored_as
from tests.support.fused_models import FUSED
from tests.support.gated_blocks import gated_decoder
from tests.support.packed_decoders import write_packed
from tests.support.signal_stack import leave_signal_stack
from tests.support.tiny_models import beginning_tokenizer
from tests.support.users import without_home

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it

FACTS = BuildFacts(
    openvino="2026.4.1",
    onnxruntime="1.17",
    openvino_library="libshearling_openvino.so",
    onnxruntime_library="libshearling_onnxruntime.so",
    operator_set="shearling",
    properties={"INFERENCE_PRECISION_HINT": "f32"},
    sources="0" * 64,
)
UNRENDERABLE = "{{ raise_exception('no such roles') }}"


@pytest.fixture
def libraries(monkeypatch, tmp_path) -> Path:
    """An installation that claims to hold libraries."""
    directory = tmp_path / "libraries"
    directory.mkdir()
    (directory / "build.json").write_text(json.dumps(dataclasses.asdict(FACTS)))
    for module in (build_facts, openvino, onnx_runtime):
        monkeypatch.setattr(module, "DIRECTORY", directory)
    read_build_facts.cache_clear()
    yield directory
    read_build_facts.cache_clear()


@pytest.mark.parametrize("version", ["2026.4.1-22982-8c2bb2d8f3c", "2026.4.1"])
def test_the_release_that_it_was_built_for_is_taken(libraries, monkeypatch, version):
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(__version__=version))
    assert shearling_runtime.extension() == str(libraries / "libshearling_openvino.so")


@pytest.mark.parametrize(
    ("version", "wheel"),
    [
        ("2026.4.0-1-x", "'openvino==2026.4.1', or the wheel shearling_runtime-2026.4.0.*"),
        ("2027.0.0.dev20270101", "'openvino==2026.4.1', or the wheel shearling_runtime-2027.0.0.*"),
    ],
)
def test_another_release_names_the_wheel_to_install(libraries, monkeypatch, version, wheel):
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(__version__=version))
    with pytest.raises(RuntimeUnavailable) as caught:
        shearling_runtime.extension()
    assert caught.value.exit_code == 4
    assert caught.value.remedy == f"pip install {wheel}"


def test_an_older_onnx_runtime_is_refused(libraries, monkeypatch):
    for version, fits in (("1.9.0", False), ("1.16.3", False), ("1.17.0", True), ("2.0.0", True)):
        monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(__version__=version))
        if fits:
            assert shearling_runtime.operators() == str(libraries / "libshearling_onnxruntime.so")
        else:
            with pytest.raises(RuntimeUnavailable, match=r"pip install 'onnxruntime>=1\.17'"):
                shearling_runtime.operators()


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("openvino", "extension"),
        ("onnxruntime", "operators"),
        ("onnxruntime_genai", "load_genai_model"),
        ("optimum.intel.openvino", "load_causal_lm"),
    ],
)
def test_a_runtime_that_is_missing_is_named(libraries, monkeypatch, module, function):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RuntimeUnavailable, match=r"cannot be imported.*pip install"):
        getattr(shearling_runtime, function)(*(["directory"] if function.startswith("load") else []))


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        [],
        {},
        {"filename": "../model.onnx"},
        {"filename": "model.onnx", "session_options": {"custom_ops_library": "own.so"}},
        {"filename": "model.onnx", "pipeline": [{"one": {"session_options": {"custom_ops_library": "own.so"}}}]},
    ],
)
@pytest.mark.parametrize("beside", [{}, {"vision": {"session_options": {"custom_ops_library": "own.so"}}}])
def test_a_genai_document_that_is_no_exports_is_refused(loading, tmp_path, monkeypatch, decoder, beside):
    genai = pytest.importorskip("onnxruntime_genai")
    monkeypatch.setattr(genai, "Model", None)  # refused before anything is loaded
    if decoder is not None:
        (tmp_path / "genai_config.json").write_text(json.dumps({"model": {"decoder": decoder, **beside}}))
    with pytest.raises(ModelUnusable, match=r"document that ONNX Runtime GenAI reads|is not what a decoder in"):
        shearling_runtime.load_genai_model(tmp_path)


@pytest.fixture
def loading(libraries, monkeypatch) -> None:
    """The modules that the build of the wheel puts beside its own."""
    names = ("genai_document", "genai_stream", "ir_text", "known_crash", "packed_choice", "packed_model")
    for name in (*names, "prompt_encoding"):
        module = importlib.import_module(f"shearling.kernel.loading.{name}")
        monkeypatch.setitem(sys.modules, f"shearling_runtime.loading.{name}", module)


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> Path:
    """A model without our operators, for OpenVINO GenAI."""
    directory = tmp_path_factory.mktemp("stock") / "openvino"
    write_openvino(FUSED["llama"](), beginning_tokenizer(), directory, stored_as("int8"), sparsity={})
    return directory


def test_a_file_without_our_operators_takes_any_choice_that_there_is(loading, stock):
    for choice in CHOICES:
        shearling_runtime.pipeline(stock, PACKED=choice)
    with pytest.raises(RequestFault, match="PACKED is 'sometimes', not one of always, expanded, measured, never"):
        shearling_runtime.pipeline(stock, PACKED="sometimes")


@pytest.mark.filterwarnings("default:.*float32 instead of bf16:RuntimeWarning")
def test_what_openvino_would_die_of_is_not_done_and_told(loading, tmp_path_factory, capsys, monkeypatch):
    monkeypatch.setattr(known_crash, "_processor_has_amx", lambda: True)
    directory = gated_decoder(tmp_path_factory)
    with pytest.raises(SystemExit) as left:
        command.main([str(directory), "--prompt", "Area man", "--threads", "1", "--max-new-tokens", "2", "--no-chat"])
    told = capsys.readouterr().err
    assert left.value.code == 0, told
    assert told.count(f"{directory}: {known_crash.AVOIDED}\n") == 1
    with pytest.warns(RuntimeWarning, match="float32 instead of bf16"):
        shearling_runtime.pipeline(directory, INFERENCE_NUM_THREADS=1)
    with pytest.raises(RequestFault, match=r"dies here of SIGFPE.*Use two threads"):
        shearling_runtime.pipeline(directory, INFERENCE_NUM_THREADS=1, INFERENCE_PRECISION_HINT="bf16")


@pytest.mark.parametrize("key", CONTEXT_KEYS)
@pytest.mark.parametrize("nested", [False, True])
def test_a_context_is_found_where_the_toolchain_finds_it(loading, stock, tmp_path, key, nested):
    directory = tmp_path / "model"
    shutil.copytree(stock, directory)
    config = json.loads((directory / "config.json").read_text())
    kept = {name: value for name, value in config.items() if name not in CONTEXT_KEYS}
    stated = {key: 16}
    (directory / "config.json").write_text(json.dumps({**kept, **({"text_config": stated} if nested else stated)}))
    model = GreedyModel(directory)
    with pytest.raises(RequestFault, match="a context of 16"):
        model.generate([5] * 12, max_new_tokens=5)
    assert len(model.generate([5] * 12, max_new_tokens=4, to_the_end=True).token_ids) == 4


def test_a_packed_operator_that_lies_is_a_bad_model(loading, tmp_path, monkeypatch):
    module = importlib.import_module("shearling_runtime.pipeline")
    monkeypatch.setattr(module, "machine_operators", machine_operators)
    xml = write_packed(tmp_path, FUSED["llama"]())
    xml.write_text(xml.read_text().replace(' activation="silu"', "", 1))
    with pytest.raises(ModelUnusable, match="it has no 'activation'"):
        shearling_runtime.pipeline(tmp_path, PACKED="never")


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("absent/fused", "Make it"),
        (".", "Name another directory"),
        ("model/fused", "Name one beside it"),
        ("model", "Name one beside it"),
    ],
)
def test_a_place_where_no_model_can_be_written_is_refused(loading, tmp_path, monkeypatch, output, words):
    module = importlib.import_module("shearling_runtime.pipeline")
    monkeypatch.setattr(module, "machine_operators", machine_operators)
    source = tmp_path / "model"
    source.mkdir()
    write_packed(source, FUSED["llama"]())
    with pytest.raises(RequestFault) as caught:
        shearling_runtime.write_fused(source, tmp_path / output)
    assert caught.value.remedy == words


def test_a_user_without_a_home_keeps_no_measurements(monkeypatch):
    monkeypatch.setitem(sys.modules, "shearling_runtime.cache", importlib.import_module("shearling.cache"))
    kept = importlib.import_module("shearling_runtime.pipeline")._cache
    assert kept() is not None
    without_home(monkeypatch)
    assert kept() is None


@pytest.fixture(scope="module")
def genai(tmp_path_factory) -> Path:
    """A model without our operators, for ONNX Runtime GenAI."""
    pytest.importorskip("onnxruntime_genai")
    directory = tmp_path_factory.mktemp("stock") / "onnx-genai"
    write_onnx_genai(FUSED["llama"](), beginning_tokenizer(), directory, stored_as("fp32"))
    return directory


def test_genai_begins_a_text_as_its_tokenizer_does_and_a_chat_as_its_template_does(loading, genai):
    model, tokenizer = GenAIGreedyModel(genai), beginning_tokenizer()
    turn = [{"role": "user", "content": "Area man"}]
    chat = tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]
    text = tokenizer("Area man").input_ids
    assert text[0] == chat[0] != chat[1]
    assert [model.encode("Area man", chat=asked) for asked in (False, True, False)] == [text, chat, text]


def test_what_a_genai_document_says_of_the_search_changes_no_token(loading, genai, tmp_path):
    searching = Path(shutil.copytree(genai, tmp_path / "searching"))
    path = searching / "genai_config.json"
    document = json.loads(path.read_text())
    document["search"] |= {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "num_beams": 2}
    path.write_text(json.dumps(document))
    made = [GenAIGreedyModel(place).generate([5, 6, 7, 8], max_new_tokens=24) for place in (genai, searching)]
    assert made[0].token_ids == made[1].token_ids


def run_json(capsys, directory: Path, *options: str) -> tuple[dict[str, Any], str]:
    """What a command that fails says, in JSON and in words."""
    with pytest.raises(SystemExit) as caught:
        command.main([str(directory), "--prompt", "x", "--json", *options])
    output = capsys.readouterr()
    result = json.loads(output.out)
    assert result["status"] == "error"
    assert result["exit_code"] == caught.value.code
    return result, output.err


def test_no_run_of_a_benchmark_begins_like_another(loading, stock, capsys, monkeypatch):
    """GenAI would find what it has read before, and the first token would come ten times too fast."""
    generate, read = command.GreedyModel.generate, []

    def recorded(self, prompt, **options):
        read.append(list(prompt))
        return generate(self, prompt, **options)

    monkeypatch.setattr(command.GreedyModel, "generate", recorded)
    with pytest.raises(SystemExit, match="0"):
        command.main(
            [str(stock), "--bench", "--prompt-tokens", "64", "--max-new-tokens", "2", "--repeats", "12", "--json"]
        )
    assert json.loads(capsys.readouterr().out)["prompt_tokens"] == 64
    assert {len(prompt) for prompt in read} == {64}
    # Fewer tokens than a block of its cache.
    assert len({tuple(prompt[:16]) for prompt in read}) == len(read) == 13


@pytest.mark.parametrize("part", ["genai", "stock"])
def test_a_chat_template_that_cannot_be_rendered_is_a_bad_model(loading, request, tmp_path, capsys, part):
    if part == "genai":
        directory = Path(shutil.copytree(request.getfixturevalue(part), tmp_path / part))
        (directory / "chat_template.jinja").write_text(UNRENDERABLE)
    else:
        directory, tokenizer = tmp_path / part, beginning_tokenizer()
        tokenizer.chat_template = UNRENDERABLE
        write_openvino(FUSED["llama"](), tokenizer, directory, stored_as("int8"), sparsity={})
    result, told = run_json(capsys, directory, "--chat")
    assert (result["exit_code"], result["remedy"]) == (3, "Use --no-chat")
    assert f"error: {directory}: its tokenizer fails: " in told
    # Minja ends with a drawing of the place.
    assert not told.strip().endswith("^")
    assert "its tokenizer fails: ^" not in told


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize(("place", "code"), [("full", 4), ("gone", 0)])
def test_an_output_that_cannot_be_written_is_no_defect(options, place, code):
    program = (
        "import sys, types\n"
        "from shearling_runtime import command\n"
        "command._generate = lambda options: options.json or command._show('text\\n') or {}\n"
        "command.main(['DIR', '--prompt', 'x', *sys.argv[1:]])\n"
    )
    reading, writing = os.pipe()
    os.close(reading)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program, *options],
            stdout=full if place == "full" else writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path(shearling_runtime.__file__).parents[1])},
        )
    os.close(writing)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == (1 if code else 0)


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", b"Gr??e ??\n"), ("utf-8", "Grüße 東京\n".encode())])
def test_what_an_output_cannot_show_is_no_defect(encoding, shown):
    program = (
        "from shearling_runtime import command\n"
        "command._generate = lambda options: command._show('Gr\\u00fc\\u00dfe \\u6771\\u4eac\\n') or {}\n"
        "command.main(['DIR', '--prompt', 'x'])\n"
    )
    source = str(Path(shearling_runtime.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (0, shown), done.stderr


class Failing(io.StringIO):
    """An output that takes one piece of a text."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self.act, self.pieces = act, 0

    def write(self, text: str) -> int:
        self.pieces += 1
        if self.pieces > 1:
            self.act()
        return super().write(text)


def run_with_output(monkeypatch, output: TextIO | None, *options: str) -> int:
    """Exit code of a command that writes there."""
    monkeypatch.setattr(sys, "stdout", output)
    with pytest.raises(SystemExit) as caught:
        command.main([*options])
    return int(caught.value.code)


def test_an_interruption_ends_a_text(loading, stock, capfd, monkeypatch):
    """At its second piece, with what Ctrl-C raises."""
    leave_signal_stack()
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        output = Failing(lambda: signal.raise_signal(signal.SIGINT))
        assert run_with_output(monkeypatch, output, str(stock), "--prompt", "Area man", "--no-chat") == 130
    finally:
        signal.signal(signal.SIGINT, previous)
    assert output.pieces == 2
    assert capfd.readouterr().err == ""


def test_an_interruption_ends_a_text_that_nobody_reads_yet(loading, stock, capfd, monkeypatch):
    pieces = []

    def interrupted(piece: str) -> None:
        pieces.append(piece)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_pass_over", interrupted)
    assert run_with_output(monkeypatch, io.StringIO(), str(stock), "--prompt", "Area man", "--no-chat", "--json") == 130
    assert len(pieces) == 1


@pytest.mark.parametrize("part", ["genai", "stock"])
def test_a_text_that_cannot_be_written_is_said_once(loading, request, capfd, monkeypatch, part):
    directory = request.getfixturevalue(part)
    with Path("/dev/full").open("w") as full:
        code = run_with_output(monkeypatch, full, str(directory), "--prompt", "Area man", "--no-chat")
    assert code == 4
    error = capfd.readouterr().err
    assert error.startswith("error: the standard output cannot be written: No space left on device")
    assert error.count("\n") == 1


@pytest.mark.parametrize("place", ["full", "closed"])
def test_an_error_is_said_where_its_document_cannot_be_written(tmp_path, capfd, monkeypatch, place):
    with Path("/dev/full").open("w") as full:
        output = full if place == "full" else None
        assert run_with_output(monkeypatch, output, str(tmp_path), "--prompt", "x", "--json") == 3
    error = capfd.readouterr().err
    assert error.startswith(f"error: {tmp_path}: no OpenVINO model here")
    assert error.count("\n") == 1


def test_a_closed_output_is_no_defect(capfd, monkeypatch):
    monkeypatch.setattr(command, "_generate", lambda _: {})
    assert run_with_output(monkeypatch, None, "DIR", "--prompt", "x", "--json") == 4
    assert capfd.readouterr().err.startswith("error: the standard output is closed")


def test_where_no_temporary_file_can_be_written_the_environment_is_at_fault(
    loading, genai, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    result, told = run_json(capsys, genai)
    assert result["exit_code"] == 4
    assert "TMPDIR" in told


@pytest.mark.parametrize("debug", [False, True])
def test_what_nobody_foresaw_is_said_like_any_other_error(tmp_path, capsys, monkeypatch, debug):
    def open_nothing(*_: object) -> NoReturn:
        raise ZeroDivisionError("of nothing")

    monkeypatch.setattr(command, "_open", open_nothing)
    result, told = run_json(capsys, tmp_path, *(["--debug"] if debug else []))
    assert (result["exit_code"], result["message"]) == (5, "internal error: ZeroDivisionError: of nothing")
    assert ("Traceback" in told) is debug


def test_an_installation_without_libraries_says_so(tmp_path, capsys):
    with pytest.raises(RuntimeUnavailable, match="Install it from its wheel"):
        shearling_runtime.extension()
    (tmp_path / "genai_config.json").write_text("{}")
    result, _ = run_json(capsys, tmp_path)
    assert (result["exit_code"], result["remedy"]) == (4, "Install it from its wheel")


@pytest.mark.parametrize(
    "arguments", [[], ["DIR"], ["DIR", "--bench", "--prompt", "x"], ["DIR", "--bench", "--threads", "0"]]
)
def test_a_wrong_command_is_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    assert "usage: shearling-run" in capsys.readouterr().err


@pytest.mark.parametrize(("prompt", "words"), [("", "the prompt is empty"), ("caf\udce9", "the prompt is not UTF-8")])
def test_a_prompt_that_is_no_text_is_refused(tmp_path, capsys, prompt, words):
    with pytest.raises(SystemExit) as caught:
        command.main([str(tmp_path), "--prompt", prompt])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bench", "--chat"], "--chat says nothing with --bench"),
        (["--bench", "--no-chat"], "--chat says nothing with --bench"),
        (["--bench", "--max-new-tokens", "1"], "--max-new-tokens 2 or more"),
        (["--prompt", "a", "--prompt-tokens", "9"], "--prompt-tokens says nothing with --prompt"),
        (["--prompt", "a", "--repeats", "3"], "--repeats says nothing with --prompt"),
    ],
)
def test_what_would_say_nothing_is_refused(tmp_path, capsys, options, words):
    with pytest.raises(SystemExit) as ended:
        command.main([str(tmp_path), *options])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_a_directory_without_a_model_is_a_bad_artefact(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main([str(tmp_path), "--prompt", "x", "--json"])
    assert caught.value.code == ModelUnusable.exit_code == 3
    output = capsys.readouterr()
    assert json.loads(output.out)["exit_code"] == 3
    assert f"{tmp_path}: no OpenVINO model here" in output.err


def test_an_incomplete_export_names_what_is_missing(tmp_path, capsys):
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "openvino_model.xml").touch()
    with pytest.raises(SystemExit):
        command.main([str(tmp_path), "--prompt", "x"])
    assert "openvino_model.bin, openvino_tokenizer.xml" in capsys.readouterr().err


def test_the_help_fits_the_screen(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, command._parser().format_help().splitlines())) <= 80


def test_it_imports_nothing_but_itself_and_the_runtimes():
    allowed = {
        "shearling_runtime",
        "numpy",
        "openvino",
        "openvino_genai",
        "onnxruntime",
        "onnxruntime_genai",
        "optimum",
    }
    found = set()
    # Those modules of the toolchain, too, that its build puts beside its own.
    loading = ROOT / "shearling" / "kernel" / "loading"
    copied = [ROOT / "shearling" / "cache.py", *loading.rglob("*.py")]
    for file in [*(ROOT / "packages" / "runtime" / "src").rglob("*.py"), *copied]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert (loading / f"{node.module}.py").is_file()
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").partition(".")[0])
            elif isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
    assert found - allowed <= sys.stdlib_module_names
    assert found - sys.stdlib_module_names <= allowed


def test_its_version_is_that_of_the_openvino_that_everything_is_tested_with():
    project = tomllib.loads((ROOT / "packages" / "runtime" / "pyproject.toml").read_text(encoding="utf-8"))
    release = project["project"]["version"].rpartition(".")[0]
    toolchain = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert toolchain["project"]["optional-dependencies"]["runtime"] == [f"shearling-runtime[openvino]=={release}.*"]
    extras = project["project"]["optional-dependencies"]
    assert f"openvino=={release}" in project["build-system"]["requires"]
    assert extras["openvino"] == [f"openvino=={release}"]
    assert extras["genai"] == [f"openvino-genai~={release}.0"]
    assert f"openvino=={release}" in extras["optimum"]
    assert f"openvino-tokenizers~={release}.0" in extras["optimum"]
    assert f"openvino=={release}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("given", "expected"), [([], ["ours"]), (["mine"], ["mine", "ours"]), (["ours", "mine"], ["mine", "ours"])]
)
def test_libraries_of_the_user_come_beside_the_operators(monkeypatch, tmp_path, given, expected):
    module, opened = importlib.import_module("shearling_runtime.pipeline"), []

    def load(_xml, _device, properties):
        loaded = SimpleNamespace(properties=dict(properties))
        loaded.open_pipeline = lambda _: opened.append(loaded.properties["extensions"])
        return loaded

    for name, value in {
        "read_build_facts": lambda: None,
        "is_packed": lambda _: True,
        "extension": lambda: "ours",
        "load": load,
    }.items():
        monkeypatch.setattr(module, name, value)
    shearling_runtime.pipeline(tmp_path, extensions=given)
    assert opened == [expected]


@pytest.mark.parametrize(
    ("options", "device", "asked"),
    [
        ({}, "CPU", {}),
        ({"packed": "never", "device": "gpu"}, "GPU", {"PACKED": "never"}),
        ({"ov_config": {"INFERENCE_NUM_THREADS": "2"}}, "CPU", {"INFERENCE_NUM_THREADS": "2"}),
    ],
)
def test_optimum_compiles_with_what_the_choice_was_made_for(monkeypatch, tmp_path, options, device, asked):
    """Without the preferred properties among those asked for: what stays unpacked runs with OpenVINO's own."""
    module, told = importlib.import_module("shearling_runtime.optimum"), []

    class Model:
        @classmethod
        def from_pretrained(cls, directory, **given):
            return cls.load_model(directory), given

    def load(xml, *arguments, **_):
        told.append((xml, *arguments))
        return SimpleNamespace(properties={"CHOSEN": "1"}, read=lambda: "a model")

    monkeypatch.setitem(sys.modules, "optimum.intel.openvino", SimpleNamespace(OVModelForCausalLM=Model))
    monkeypatch.setattr(module, "load", load)
    model, given = module.load_causal_lm(tmp_path, **options)
    assert told == [(tmp_path / "openvino_model.xml", device, asked)]
    assert (model, given["ov_config"]) == ("a model", {"CHOSEN": "1"})
