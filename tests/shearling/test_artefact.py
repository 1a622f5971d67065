"""Artefacts are complete or absent, whatever happens to their writer, and a reader notices every changed byte."""

from __future__ import annotations

import importlib.machinery
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

from shearling import errors
from shearling.artefact import (
    MANIFEST,
    check_destination,
    check_unlocked,
    open_artefact,
    remove_artefact,
    write_artefact,
)
from shearling.strict_json import write_json


def make(path, content="one", **options):
    with write_artefact(path, kind="task", **options) as draft:
        (draft.directory / "sub").mkdir(exist_ok=True)
        (draft.directory / "sub" / "rows.jsonl").write_text(content)
        (draft.directory / "facts.json").write_text("{}")
        draft.details["rows"] = 3
    return open_artefact(path, kind="task")


def write_half(path, **options):
    with write_artefact(path, kind="task", **options) as draft:
        (draft.directory / "checkpoint").write_text("half")
        _ = 1 / 0


def names(directory):
    return sorted(path.name for path in directory.iterdir() if not path.name.endswith(".lock"))


def start(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_round_trip(tmp_path):
    parent = make(tmp_path / "parent")
    child = make(tmp_path / "deep" / "child", parents={"task": parent}, seed=5)
    assert child.manifest.parents == {"task": parent.sha256}
    assert (child.manifest.seed, child.manifest.details) == (5, {"rows": 3})
    assert set(child.manifest.files) == {"sub/rows.jsonl", "facts.json"}
    assert names(tmp_path / "deep") == ["child"]


def test_equal_content_has_equal_files_and_moves_freely(tmp_path):
    one = make(tmp_path / "one")
    assert make(tmp_path / "two").manifest.files == one.manifest.files
    (tmp_path / "one").rename(tmp_path / "elsewhere")
    assert open_artefact(tmp_path / "elsewhere", kind="task").sha256 == one.sha256


def test_failed_writer_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_half(tmp_path / "a")
    assert names(tmp_path) == []


def test_resumable_writer_finds_its_work_again(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_half(tmp_path / "a", resumable=True)
    assert not (tmp_path / "a").exists()
    with write_artefact(tmp_path / "a", kind="task", resumable=True) as draft:
        assert (draft.directory / "checkpoint").read_text() == "half"
    assert open_artefact(tmp_path / "a", kind="task").manifest.files.keys() == {"checkpoint"}


def test_a_bit_flip_anywhere_is_noticed(tmp_path):
    make(tmp_path / "a", content="payload")
    file = tmp_path / "a" / "sub" / "rows.jsonl"
    for position in range(7):
        raw = bytearray(b"payload")
        raw[position] ^= 1 << position
        file.write_bytes(raw)
        with pytest.raises(errors.ArtefactCorrupt, match="sha256") as caught:
            open_artefact(tmp_path / "a", kind="task")
        assert caught.value.where == str(file)


def test_truncated_missing_or_linked_file(tmp_path):
    make(tmp_path / "a", content="payload")
    file = tmp_path / "a" / "sub" / "rows.jsonl"
    file.write_text("pay")
    with pytest.raises(errors.ArtefactCorrupt, match="3 bytes, the manifest says 7"):
        open_artefact(tmp_path / "a", kind="task")
    file.unlink()
    with pytest.raises(errors.ArtefactCorrupt, match="missing"):
        open_artefact(tmp_path / "a", kind="task")
    (tmp_path / "outside").write_text("payload")
    file.symlink_to(tmp_path / "outside")
    with pytest.raises(errors.ArtefactCorrupt, match="link"):
        open_artefact(tmp_path / "a", kind="task")


@pytest.mark.parametrize(("inside", "said"), [("a", "."), ("a/sub", "..")])
def test_a_directory_is_an_artefact_whatever_it_is_called(inside, said, tmp_path, monkeypatch):
    first = make(tmp_path / "a")
    monkeypatch.chdir(tmp_path / inside)
    said = Path(said)
    opened = open_artefact(said, kind="task")
    assert (opened.sha256, opened.path.parent) == (first.sha256, tmp_path)
    with pytest.raises(errors.OutputExists):
        make(said)
    with write_artefact(said, kind="task", force=True) as draft:
        (draft.directory / "rows.jsonl").write_text("two")
    assert draft.sealed.path == tmp_path / "a"
    assert open_artefact(tmp_path / "a", kind="task").manifest.files.keys() == {"rows.jsonl"}
    monkeypatch.chdir(tmp_path)
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(
    "name", ["model.safetensors.index.json", "openvino_model.xml", "sub/other.safetensors", "vocab.txt", "a.jsonl"]
)
def test_what_a_reader_would_take_for_a_part_is_listed_or_refused(name, tmp_path):
    made = make(tmp_path / "task")
    (made.path / name).write_text("{}")
    for only in (None, ("facts.json",)):
        with pytest.raises(errors.ArtefactCorrupt, match="no manifest lists it") as caught:
            open_artefact(made.path, kind="task", only=only)
        assert caught.value.where == str(made.path / name)
    (made.path / name).unlink()
    for harmless in ("NOTES.md", "plot.png", ".gitattributes", ".cache/huggingface/download/facts.json"):
        (made.path / harmless).parent.mkdir(parents=True, exist_ok=True)
        (made.path / harmless).touch()
    open_artefact(made.path, kind="task")


def test_linked_directory_inside_is_refused(tmp_path):
    make(tmp_path / "a", content="payload")
    (tmp_path / "a" / "sub").rename(tmp_path / "outside")
    (tmp_path / "a" / "sub").symlink_to(tmp_path / "outside")
    with pytest.raises(errors.ArtefactCorrupt):
        open_artefact(tmp_path / "a", kind="task")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "sub/../../x", MANIFEST])
def test_manifest_that_names_files_outside(name, tmp_path):
    make(tmp_path / "a")
    manifest = json.loads((tmp_path / "a" / MANIFEST).read_text())
    manifest["files"][name] = {"sha256": "0" * 64, "bytes": 1}
    (tmp_path / "a" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(errors.DocumentInvalid, match="not a path inside"):
        open_artefact(tmp_path / "a", kind="task")


def test_missing_and_other_kinds(tmp_path):
    with pytest.raises(errors.ArtefactMissing, match="no base artefact") as caught:
        open_artefact(tmp_path / "a", kind="base")
    assert "python -m train" in caught.value.remedy
    make(tmp_path / "a")
    with pytest.raises(errors.ArtefactMismatch, match="a task artefact, expected base"):
        open_artefact(tmp_path / "a", kind="base")
    (tmp_path / "a" / MANIFEST).unlink()
    with pytest.raises(errors.ArtefactMissing, match=MANIFEST):
        open_artefact(tmp_path / "a", kind="task")


def test_force_replaces_only_what_a_manifest_lists(tmp_path):
    first = make(tmp_path / "a")
    with pytest.raises(errors.OutputExists):
        make(tmp_path / "a", content="two")
    assert open_artefact(tmp_path / "a", kind="task").sha256 == first.sha256
    assert make(tmp_path / "a", content="two", force=True).sha256 != first.sha256
    (tmp_path / "a" / "thesis.txt").write_text("years of work")
    for action in (lambda: make(tmp_path / "a", force=True), lambda: remove_artefact(tmp_path / "a")):
        with pytest.raises(errors.OutputExists, match=r"thesis\.txt"):
            action()
    assert (tmp_path / "a" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "a" / "thesis.txt").unlink()
    remove_artefact(tmp_path / "a")
    assert names(tmp_path) == []


def write_while(happens, path, *, kind="task", **options):
    with write_artefact(path, kind=kind, **options) as draft:
        (draft.directory / "rows.jsonl").write_text("two")
        (draft.directory / "checkpoints").mkdir()
        happens()


def test_files_that_come_while_an_artefact_is_written_stay_and_so_does_it(tmp_path):
    make(tmp_path / "a")
    stranger = tmp_path / "a" / "thesis.txt"
    with pytest.raises(errors.OutputExists, match=r"thesis\.txt") as caught:
        write_while(lambda: stranger.write_text("years of work"), tmp_path / "a", force=True, scratch=("checkpoints",))
    assert stranger.read_text() == "years of work"
    # What the remedy says.
    assert str(tmp_path / ".a.partial") in caught.value.remedy
    (tmp_path / "a").rename(tmp_path / "moved")
    (tmp_path / ".a.partial").rename(tmp_path / "a")
    assert open_artefact(tmp_path / "a", kind="task").manifest.files.keys() == {"rows.jsonl"}
    assert names(tmp_path / "a") == [MANIFEST, "rows.jsonl"]
    make(tmp_path / "a", force=True)
    assert names(tmp_path) == ["a", "moved"]


@pytest.mark.parametrize("resumable", [False, True])
def test_a_directory_that_comes_while_an_artefact_is_written_is_not_taken(resumable, tmp_path):
    make(tmp_path / "b")
    with pytest.raises(errors.OutputExists, match="while it was being written"):
        write_while(lambda: (tmp_path / "b").rename(tmp_path / "a"), tmp_path / "a", resumable=resumable)
    assert set(open_artefact(tmp_path / "a", kind="task").manifest.files) == {"sub/rows.jsonl", "facts.json"}
    assert set(open_artefact(tmp_path / ".a.partial", kind="task").manifest.files) == {"rows.jsonl"}


@pytest.mark.parametrize("force", [False, True])
def test_an_artefact_of_another_kind_is_never_replaced(force, tmp_path):
    first = make(tmp_path / "a")
    with (
        pytest.raises(errors.OutputExists, match="holds an artefact of kind task, not search") as caught,
        write_artefact(tmp_path / "a", kind="search", force=force),
    ):
        raise AssertionError
    assert caught.value.exit_code == 2
    assert "--force" not in caught.value.remedy
    with pytest.raises(errors.OutputExists, match="kind task"):
        write_while(lambda: (tmp_path / "a").rename(tmp_path / "b"), tmp_path / "b", kind="search", force=force)
    (tmp_path / "b").rename(tmp_path / "a")
    assert open_artefact(tmp_path / "a", kind="task").sha256 == first.sha256
    assert names(tmp_path) == [".b.partial", "a"]


def test_force_removes_nothing_that_the_artefact_is_made_from(tmp_path):
    with write_artefact(tmp_path / "a", kind="task") as draft:
        make(draft.directory / "inner")
    outer, inner = (open_artefact(tmp_path / name, kind="task") for name in ("a", "a/inner"))
    (tmp_path / "link").symlink_to(tmp_path)
    for place in (tmp_path / "a", tmp_path / "link" / "a"):
        for parent in (outer, inner):
            with pytest.raises(errors.OutputExists, match="made from") as caught:
                make(place, parents={"task": parent}, force=True)
            assert str(parent.path) in caught.value.message
    # Nor does it leave anything in it that no manifest lists.
    with pytest.raises(errors.OutputExists, match="lies in what it is made from"):
        make(tmp_path / "link" / "a" / "deep" / "new", parents={"task": outer})
    assert not (tmp_path / "a" / "deep").exists()


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_force_never_removes_a_directory_without_a_manifest(content, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "precious").write_text("x")
    if content:
        (tmp_path / "home" / MANIFEST).write_text(content)
    for path in (tmp_path / "home", tmp_path / "home" / "precious"):
        with pytest.raises(errors.OutputExists):
            check_destination(path, kind="task", force=True)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(errors.OutputExists):
        check_destination(link, kind="task", force=True)


def test_where_no_directory_can_be_made_nothing_begins(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "artefact", tmp_path / "file" / "deep" / "artefact"):
        with pytest.raises(errors.UsageError, match="no directory can be made here"):
            check_destination(path, kind="task", force=False)
    check_destination(tmp_path / "deep" / "er" / "artefact", kind="task", force=False)
    assert not (tmp_path / "deep").exists()


def test_empty_directory_is_no_artefact(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(errors.OutputExists):
        make(tmp_path / "a")
    make(tmp_path / "a", force=True)


KILLED_IN_A_DOCUMENT = """
import os, signal, sys
from pathlib import Path
from shearling.artefact import write_artefact
from shearling.strict_json import whole_file
with write_artefact(Path(sys.argv[1]), kind="search", resumable=True) as draft:
    (draft.directory / "deep").mkdir()
    with whole_file(draft.directory / "deep" / "best.json"):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_half_a_document_of_a_killed_writer_is_not_sealed(tmp_path):
    start(KILLED_IN_A_DOCUMENT, tmp_path / "a").communicate()
    (half,) = (tmp_path / ".a.partial" / "deep").iterdir()
    assert half.name.startswith(".best.json.tmp-")
    with write_artefact(tmp_path / "a", kind="search", resumable=True) as draft:
        write_json(draft.directory / "deep" / "best.json", {})
    assert open_artefact(tmp_path / "a", kind="search").manifest.files.keys() == {"deep/best.json"}
    assert names(tmp_path / "a" / "deep") == ["best.json"]


def test_a_command_whose_bytes_are_no_text_makes_an_artefact_that_opens(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/train", "--output", os.fsdecode(b"runs/caf\xe9")])
    assert make(tmp_path / "a").manifest.command[-2:] == ("--output", "runs/caf\\xe9")


@pytest.mark.parametrize(
    ("module", "begin"),
    [
        (None, ("shearling",)),
        ("train.__main__", ("python", "-m", "train")),
        ("benchmarks.scale", ("python", "-m", "benchmarks.scale")),
    ],
)
def test_the_command_is_what_can_be_run_again(tmp_path, monkeypatch, module, begin):
    main = types.ModuleType("__main__")
    main.__spec__ = None if module is None else importlib.machinery.ModuleSpec(module, None)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", ["/bin/shearling" if module is None else "/x/train/__main__.py", "--seed", "1"])
    assert make(tmp_path / "a").manifest.command == (*begin, "--seed", "1")


KILLED_WHILE_IT_REMOVES = """
import os, shutil, signal, sys
from pathlib import Path
from shearling.artefact import remove_artefact
def remove(path, **options):
    if Path(path).exists():
        (Path(path) / "manifest.json").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
shutil.rmtree = remove
remove_artefact(Path(sys.argv[1]))
"""


def test_what_was_killed_while_it_removed_leaves_nothing_in_the_way(tmp_path):
    make(tmp_path / "a")
    start(KILLED_WHILE_IT_REMOVES, tmp_path / "a").communicate()
    assert not (tmp_path / "a").exists()
    make(tmp_path / "a", "two")
    assert names(tmp_path) == ["a"]


WRITER = """
import sys, time
from pathlib import Path
from shearling.artefact import write_artefact
with write_artefact(Path(sys.argv[1]), kind="task", force=True) as draft:
    (draft.directory / "half").write_text("x" * 1000)
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_another_process_writes_is_not_removed_under_it(tmp_path):
    good = make(tmp_path / "a")
    process = start(WRITER, tmp_path / "a")
    assert process.stdout.readline() == "writing\n"
    try:
        for action in (
            lambda: check_unlocked(tmp_path / "a"),
            lambda: remove_artefact(tmp_path / "a", unfinished=True),
        ):
            with pytest.raises(errors.OutputLocked):
                action()
        assert (tmp_path / ".a.partial" / "half").is_file()
    finally:
        process.kill()
        process.communicate()
    assert open_artefact(tmp_path / "a", kind="task").sha256 == good.sha256
    check_unlocked(tmp_path / "a")
    remove_artefact(tmp_path / "a", unfinished=True)
    assert names(tmp_path) == []


def test_killed_writer_leaves_no_half_artefact_and_is_swept(tmp_path):
    good = make(tmp_path / "a")
    process = start(WRITER, tmp_path / "a")
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert open_artefact(tmp_path / "a", kind="task").sha256 == good.sha256
    assert ".a.partial" in names(tmp_path)
    assert set(make(tmp_path / "a", force=True).manifest.files) == {"sub/rows.jsonl", "facts.json"}
    assert names(tmp_path) == ["a"]


def test_second_writer_is_told_and_the_first_is_not_disturbed(tmp_path):
    process = start(WRITER, tmp_path / "a")
    try:
        assert process.stdout.readline() == "writing\n"
        with pytest.raises(errors.OutputLocked) as caught:
            make(tmp_path / "a")
        assert caught.value.exit_code == 4
        assert (tmp_path / ".a.partial" / "half").is_file()
        with pytest.raises(errors.OutputLocked):
            make(tmp_path / "a")
    finally:
        process.kill()
        process.communicate()
    make(tmp_path / "a")


DISK_FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from shearling.artefact import write_artefact
from shearling.errors import ResourceExhausted
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with write_artefact(Path(sys.argv[1]), kind="task", force=True) as draft:
        if sys.argv[2] == "text":
            (draft.directory / "big").write_text("x" * 200_000)
        elif sys.argv[2] == "safetensors":
            save_file({"a": torch.zeros(100_000)}, draft.directory / "big")
        else:
            torch.save(torch.zeros(100_000), draft.directory / "big")
except ResourceExhausted as error:
    print(error.exit_code, error.where, error.message)
"""


@pytest.mark.parametrize("writer", ["text", "safetensors", "torch"])
def test_full_disk_keeps_the_previous_artefact(writer, tmp_path):
    good = make(tmp_path / "a")
    process = start(DISK_FULL, tmp_path / "a", writer)
    output, errors = process.communicate(timeout=120)
    assert output.startswith(f"4 {tmp_path / 'a'} cannot write"), errors[-2000:]
    assert open_artefact(tmp_path / "a", kind="task").sha256 == good.sha256
    assert names(tmp_path) == ["a"]


def test_replacement_killed_between_its_renames_is_undone(tmp_path):
    good = make(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / ".a.old")
    with pytest.raises(errors.OutputExists):
        make(tmp_path / "a", content="two")
    assert open_artefact(tmp_path / "a", kind="task").sha256 == good.sha256
    assert names(tmp_path) == ["a"]


KILLED = """
import os, signal, sys
from pathlib import Path
from shearling.artefact import write_artefact
left, rename = int(sys.argv[2]), Path.rename
def rename_or_die(self, target):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return rename(self, target)
Path.rename = rename_or_die
options = {"kind": "task", "force": True, "resumable": True, "scratch": ("checkpoints", "inputs.json", "never")}
with write_artefact(Path(sys.argv[1]), **options) as draft:
    (draft.directory / "checkpoints").mkdir()
    (draft.directory / "checkpoints" / "last").write_text("hours")
    (draft.directory / "inputs.json").write_text("{}")
    (draft.directory / "rows.jsonl").write_text("two")
"""


@pytest.mark.parametrize("renames", range(5))
def test_unfinished_work_is_there_until_the_artefact_is(renames, tmp_path):
    """Two are of unfinished work, one of what stood there before, and one of the artefact."""
    good = make(tmp_path / "a")
    process = start(KILLED, tmp_path / "a", renames)
    _, told = process.communicate(timeout=120)
    assert process.returncode == (0 if renames == 4 else -signal.SIGKILL), told
    if renames < 4:
        scratch = ("checkpoints", "inputs.json")
        with write_artefact(tmp_path / "a", kind="task", force=True, resumable=True, scratch=scratch) as draft:
            assert open_artefact(tmp_path / "a", kind="task").sha256 == good.sha256
            assert (draft.directory / "checkpoints" / "last").read_text() == "hours"
            assert (draft.directory / "inputs.json").read_text() == "{}"
    assert set(open_artefact(tmp_path / "a", kind="task").manifest.files) == {"rows.jsonl"}
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == [MANIFEST, "rows.jsonl"]


def test_unfinished_work_of_a_finished_artefact_is_swept(tmp_path):
    make(tmp_path / "a")
    (tmp_path / ".a.scratch" / "checkpoints").mkdir(parents=True)
    make(tmp_path / "a", force=True)
    assert names(tmp_path) == ["a"]


def test_error_is_a_resource_error_only_for_the_disk(tmp_path):
    with pytest.raises(errors.ResourceExhausted), write_artefact(tmp_path / "a", kind="task"):
        raise OSError(28, os.strerror(28))
    with pytest.raises(RuntimeError, match="unrelated"), write_artefact(tmp_path / "a", kind="task"):
        raise RuntimeError("unrelated")
