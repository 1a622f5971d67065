"""GGUF files beside our exports: found, refused with a reason, and run by llama.cpp in an environment of its own."""

from __future__ import annotations

import json
import re
import venv
from pathlib import Path

import pytest
import torch

from benchmarks.gguf_writer import write_gguf
from serve.runtimes.deployment import find_deployment
from serve.runtimes.device import check_device
from serve.runtimes.runtime import Decoding, RunOptions, load_runtime
from shearling.errors import ArtefactCorrupt, ArtefactMissing, PackageMissing, UsageError
from shearling.target import Target, parse_target
from tests.support.environments import environment_with, run_inside
from tests.support.serve_command import QUICK, serve
from tests.support.tiny_models import llama_tied_gqa, tiny_tokenizer

STAND_IN = '''
import ctypes, json

class Llama:
    """Counts upwards from the last token; what is under test is how it is called."""

    def __init__(self, path, *, n_ctx, n_batch, n_threads, n_threads_batch, flash_attn, use_mmap, verbose):
        self.n_threads, self.ctx, self.model, self.ends = n_threads, self, self, False
        with open(path + ".asked", "w") as file:
            json.dump({"flash_attn": flash_attn, "use_mmap": use_mmap}, file)

    def n_vocab(self):
        return 400

    def token_bos(self):
        return 1

    def token_eos(self):
        return 2

    def tokenize(self, text, *, add_bos, special):
        named = text.replace(b"</s>", b"\\2").replace(b"<1>", b"\\1") if special else text
        return [1] * add_bos + list(named) + [2] * (add_bos and self.ends)

    def reset(self):
        self.last = None

    def eval(self, tokens):
        self.last = tokens[-1]

def llama_model_get_vocab(model):
    return model

def llama_token_to_piece(vocab, token, buf, length, lstrip, special):
    assert token >= 0, "llama.cpp would end the process"
    piece = f"<{token}>".encode() * (100 if token == 399 else special or token > 2)
    if len(piece) > length:
        return -len(piece)
    buf[: len(piece)] = piece
    return len(piece)

def llama_print_system_info():
    return b"CPU : SSE3 = 1 | "

def llama_get_logits_ith(ctx, index):
    assert index == -1
    logits = (ctypes.c_float * ctx.n_vocab())()
    logits[(ctx.last + 1) % ctx.n_vocab()] = 1
    return logits
'''


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", llama_tied_gqa(), tiny_tokenizer())


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("peer") / "environment"
    return environment_with(
        directory, module="llama_cpp", source=STAND_IN, distribution="llama-cpp-python", sees_ours=True
    )


def test_a_gguf_file_is_a_deployment(gguf_file: Path) -> None:
    found, model = find_deployment(Target(gguf_file)), llama_tied_gqa()
    assert (found.format, found.file, found.label) == ("gguf", gguf_file, str(gguf_file))
    assert (found.context_tokens, found.vocabulary) == (model.config.max_position_embeddings, model.config.vocab_size)
    assert found.end_ids == (tiny_tokenizer().eos_token_id,)
    assert found.weights_bytes == gguf_file.stat().st_size


def test_what_does_not_fit_a_gguf_file_is_refused(gguf_file: Path, export: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactMissing, match="a gguf file; not onnx"):
        find_deployment(Target(gguf_file, format="onnx"))
    with pytest.raises(UsageError, match="OpenVINO does not run in another environment here"):
        find_deployment(parse_target(f"{export}@environment={tmp_path}"))
    with pytest.raises(UsageError, match="STREAMS is no property that gguf knows"):
        find_deployment(parse_target(f"{gguf_file}@STREAMS=1"))
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf_file.read_bytes()[:200])
    with pytest.raises(ArtefactCorrupt, match="not a readable GGUF file"):
        find_deployment(Target(cut))
    cut.write_bytes(b"<html>")
    with pytest.raises(ArtefactCorrupt, match=r"does not begin as one.*Fetch it again"):
        find_deployment(Target(cut))


def test_without_llama_cpp_the_command_says_what_to_install(gguf_file: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "empty", with_pip=False)
    done = serve("bench", f"{gguf_file}@environment={tmp_path / 'empty'}", *QUICK)
    assert done.returncode == PackageMissing.exit_code
    assert "numpy and llama_cpp cannot be imported there" in done.stderr
    assert "pip install numpy llama-cpp-python" in done.stderr


def test_an_environment_that_cannot_serve_is_refused(environment: Path, tmp_path: Path) -> None:
    with pytest.raises(PackageMissing, match="no virtual environment here"):
        check_device("gguf", "CPU", environment=tmp_path)
    empty = tmp_path / "empty"
    venv.create(empty, with_pip=False)
    with pytest.raises(PackageMissing, match="llama_cpp is not installed there"):
        check_device("gguf", "CPU", environment=empty)
    old = tmp_path / "old" / "bin" / "python"
    old.parent.mkdir(parents=True)
    old.write_text("#!/bin/sh\necho 3 8 True\n")
    old.chmod(0o755)
    with pytest.raises(PackageMissing, match=r"its Python is 3\.8"):
        check_device("gguf", "CPU", environment=old.parent.parent)
    check_device("gguf", "CPU", environment=environment)


@pytest.mark.parametrize(
    ("options", "setting", "flash", "mapped"),
    [((), "", True, False), (("--no-huge-pages",), "", True, True), ((), ",FLASH_ATTENTION=NO", False, False)],
)
def test_llama_cpp_is_measured_beside_an_export(
    gguf_file: Path, export: Path, environment: Path, options: tuple[str, ...], setting: str, flash: bool, mapped: bool
) -> None:
    """As its own programs choose, unless told otherwise: with flash attention, and in huge pages, where a file that is
    mapped cannot be.
    """
    peer = f"{gguf_file}@environment={environment}{setting}"
    done = serve("bench", export / "openvino", peer, *QUICK, *options, "--json")
    assert done.returncode == 0, done.stderr
    subjects = json.loads(done.stdout)["subjects"]
    assert [subject["deployment"]["format"] for subject in subjects] == ["openvino", "gguf"]
    facts = subjects[1]["facts"]
    assert (facts["runtime"], facts["settings"]["threads"]) == ("llama.cpp (llama-cpp-python 0.0.1)", "1")
    assert facts["settings"]["FLASH_ATTENTION"] == ("YES" if flash else "NO")
    assert facts["settings"]["compiled_for"] == "SSE3"
    assert json.loads(Path(f"{gguf_file}.asked").read_text()) == {"flash_attn": flash, "use_mmap": mapped}
    assert subjects[1]["ratios"]["tpot_s"]["samples"] == 3


def test_a_peer_that_is_built_for_every_machine_is_named(
    gguf_file: Path, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    done = serve("bench", f"{gguf_file}@environment={environment}", *QUICK)
    assert done.returncode == 0, done.stderr
    # Every processor that runs these tests has one or the other.
    assert re.search(r"llama\.cpp was compiled without (AVX|NEON)\b.*, which this processor has", done.stdout)


def test_attention_in_one_pass_is_on_or_off(gguf_file: Path, environment: Path) -> None:
    for setting, flash in (("", True), ("@FLASH_ATTENTION=YES", True), ("@FLASH_ATTENTION=NO", False)):
        said = run_inside(environment, f"{gguf_file}{setting}", "show(runtime.facts.settings['FLASH_ATTENTION'])")
        assert said == ("YES" if flash else "NO")
        assert json.loads(Path(f"{gguf_file}.asked").read_text())["flash_attn"] is flash
    done = serve("bench", f"{gguf_file}@environment={environment},FLASH_ATTENTION=no", *QUICK)
    assert done.returncode == UsageError.exit_code
    assert "it is YES or NO, not no" in done.stderr


def test_generations_are_timed_token_by_token_and_stop(gguf_file: Path, environment: Path) -> None:
    work = """
works = (Decoding(max_new_tokens=6, end_ids=frozenset(ends)) for ends in ([], [14]))
show([runtime.generate([[3, 10]], work).model_dump() for work in works])
"""
    free, stopped = run_inside(environment, gguf_file, work)
    assert (free["token_ids"], len(free["gaps_s"])) == ([11, 12, 13, 14, 15, 16], 5)
    assert (stopped["token_ids"], len(stopped["gaps_s"])) == ([11, 12, 13], 3)


def test_special_tokens_in_a_prompt_are_read_as_in_other_formats(gguf_file: Path, environment: Path) -> None:
    assert run_inside(environment, gguf_file, 'show(runtime.encode("a</s>", chat=False))') == [1, ord("a"), 2]
    assert run_inside(environment, gguf_file, 'show(runtime.encode("<1>a", chat=False))') == [1, ord("a")]
    work = 'runtime._model.ends = True\nshow([runtime.encode(text, chat=False) for text in ("a", "a</s>")])'
    assert run_inside(environment, gguf_file, work) == [[1, ord("a")], [1, ord("a"), 2]]


def test_a_vocabulary_may_have_no_beginning_and_no_end(environment: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    file = write_gguf(tmp_path / "chat.gguf", llama_tied_gqa(), tokenizer)
    work = """
runtime._model.token_bos = runtime._model.token_eos = lambda: -1
show([bytes(runtime.encode("Area", chat=True)).decode(), runtime.encode("a", chat=False)])
"""
    assert run_inside(environment, file, work) == ["Area", [1, ord("a")]]


def test_a_long_token_is_whole_and_special_ones_are_left_out(gguf_file: Path, environment: Path) -> None:
    assert run_inside(environment, gguf_file, "show(runtime.decode([1, 5, 399, 2]))") == "<5>" + "<399>" * 100


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        (
            "{{ bos_token }}{% for m in messages %}{{ m.content }}{% break %}{% endfor %}{{ eos_token }}",
            "\x01Area man<2>",
        ),
        ("{% generation %}{{ messages[0].role }}{% endgeneration %}", "user"),
        ("{{ raise_exception('the system speaks first') }}", "the chat template fails: the system speaks first"),
        ("{{ messages[1] + 1 }}", "the chat template fails: "),
        ("{% unheard_of %}", "the chat template fails: Encountered unknown tag 'unheard_of'"),
    ],
)
def test_a_chat_template_is_rendered_as_in_other_formats(
    environment: Path, tmp_path: Path, template: str, rendered: str
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    file = write_gguf(tmp_path / "chat.gguf", llama_tied_gqa(), tokenizer)
    work = """
from shearling.errors import ModelUnsupported
try:
    show(bytes(runtime.encode("Area man", chat=True)).decode())
except ModelUnsupported as error:
    show(error.message)
"""
    assert run_inside(environment, file, work).startswith(rendered)


def test_the_real_llama_cpp_continues_like_torch(gguf_file: Path) -> None:
    pytest.importorskip("llama_cpp")
    runtime = load_runtime(find_deployment(Target(gguf_file)), RunOptions(threads=1))
    prompt = tiny_tokenizer()("Area man wins.").input_ids
    assert runtime.encode("Area man wins.", chat=False) == prompt
    ended = "Area man wins.</s>"
    assert runtime.encode(ended, chat=False) == tiny_tokenizer()(ended).input_ids
    expected = (
        llama_tied_gqa().generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :].tolist()
    )
    generation = runtime.generate([prompt], Decoding(max_new_tokens=12))
    assert list(generation.token_ids) == expected
    assert runtime.decode(generation.token_ids) == tiny_tokenizer().decode(expected, skip_special_tokens=True)
