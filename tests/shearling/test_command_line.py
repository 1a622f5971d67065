"""The frame of every command, seen from outside: exit codes, one JSON object, signals, foreign stage packages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shearling.command_line import next_step, share_processors
from tests.support.tiny_runs import write_tiny_recipe

PROGRAM = '''
import sys, time
import typer
from rich.table import Table
from shearling.command_line import DebugFlag, JsonFlag, Result, make_app, print_piece, run_command
from shearling import errors

app = make_app("A tiny stage.")

@app.command()
def work(
    how: str, count: int = 1, share: float = typer.Option(0.5, min=0, max=1), json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Do something."""
    if how == "sleep":
        try:
            print("sleeping", flush=True)
            # A signal just before a sleep does not end it.
            for _ in range(600):
                time.sleep(0.1)
        finally:
            print("cleaned", flush=True)
    if how == "full":
        raise OSError(28, "No space left on device", "/a/file")
    if how == "files":
        raise OSError(24, "Too many open files")
    if how == "unreadable":
        raise PermissionError(13, "Permission denied", "/a/file")
    if how == "device":
        import torch
        raise torch.cuda.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB of which 1.50 GiB "
            "is free. Including non-PyTorch memory, this process has 6.29 GiB memory in use."
        )
    if how == "memory":
        import torch
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (2**35, 2**35))
        torch.empty(2**36, dtype=torch.uint8)
    if how == "python memory":
        bytearray(2**60)
    if how == "pieces":
        for piece in ("Gr\\u00fc\\u00dfe ", "\\u6771\\u4eac\\n"):
            print_piece(piece)
        return Result({}, "\\u2714")
    if how == "torn":
        raise EOFError("Ran out of input")
    if how == "noisy":
        from shearling.console import log
        for _ in range(99):
            log.print("x" * 999)
        how = "good"
    if how == "bug":
        raise KeyError("colour")
    if how not in ("good", "table"):
        raise getattr(errors, how)("it went [red]wrong[/red] with 3.5", where="a/b.json", remedy="Do better")
    table = Table("counted")
    table.add_row(str(count))
    return Result({"count": count}, table if how == "table" else f"counted {count}")

run_command(app, program="python -m tiny")
'''


@pytest.fixture
def program(tmp_path):
    (tmp_path / "tiny.py").write_text(PROGRAM)
    return tmp_path / "tiny.py"


def run(program, *arguments, **environment):
    return subprocess.run(
        [sys.executable, str(program), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


def test_result_goes_to_stdout(program):
    plain = run(program, "good", "--count", "4")
    assert (plain.returncode, plain.stdout, plain.stderr) == (0, "counted 4\n", "")
    machine = run(program, "good", "--json")
    assert json.loads(machine.stdout) == {"status": "ok", "count": 1}


@pytest.mark.parametrize(("how", "code"), [("good", 0), ("ParityFailed", 1)])
def test_the_code_is_kept_from_what_libraries_do_at_the_end(how, code, program):
    """Python's exit functions run, and the finalizers of its objects; those of C libraries do not."""
    what_runs_at_the_end = """
import atexit, ctypes, tempfile
library = ctypes.CDLL(None)
getattr(library, "__cxa_atexit")(library.abort, None, None)
atexit.register(print, "registered")
directory = tempfile.TemporaryDirectory()
atexit.register(print, directory.name)

app = """
    program.write_text(PROGRAM.replace("\napp = ", what_runs_at_the_end))
    done = run(program, how)
    assert done.returncode == code
    *_, directory, registered = done.stdout.splitlines()
    assert registered == "registered"
    assert directory.startswith("/")
    assert not Path(directory).exists()


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("ParityFailed", 1),
        ("OutputExists", 2),
        ("ArtefactCorrupt", 3),
        ("DeviceUnavailable", 4),
        ("ShearlingError", 5),
        ("full", 4),
        ("unreadable", 4),
        ("files", 4),
    ],
)
def test_errors_are_one_line_with_the_code_of_their_cause(how, code, program):
    done = run(program, how)
    assert done.returncode == code
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    if how == "files":
        assert done.stderr == "error: OSError: Too many open files. Raise the limit of open files: ulimit -n 65536\n"
    elif how not in ("full", "unreadable"):
        assert done.stderr == "error: a/b.json: it went [red]wrong[/red] with 3.5. Do better\n"
    else:
        assert "/a/file" in done.stderr


def test_an_argument_that_no_document_can_hold_is_refused(program):
    done = run(program, "work", "caf\udce9")
    assert done.returncode == 2
    assert r"not UTF-8: caf\udce9" in done.stderr


def test_what_to_do_next_can_be_pasted():
    assert next_step("-m", "train", "--output", "my run") == "next: python -m train --output 'my run'"


def test_json_error_object(program):
    done = run(program, "ArtefactCorrupt", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout) == {
        "status": "error",
        "exit_code": 3,
        "error": "ArtefactCorrupt",
        "message": "it went [red]wrong[/red] with 3.5",
        "where": "a/b.json",
        "remedy": "Do better",
    }


def test_our_own_defects_are_5_and_show_their_traceback_only_on_request(program):
    quiet, loud = run(program, "bug"), run(program, "bug", "--debug")
    assert quiet.returncode == loud.returncode == 5
    assert "KeyError" in quiet.stderr
    assert "Traceback" not in quiet.stderr
    assert "Traceback" in loud.stderr


def test_a_device_without_memory_is_4_and_says_what_would_fit(program):
    done = run(program, "device")
    assert done.returncode == 4
    assert done.stderr.startswith("error: a device has too little memory: CUDA out of memory. Tried to allocate 2.00")
    assert "1.50 GiB is free. Use a smaller batch size" in done.stderr


@pytest.mark.parametrize(
    ("how", "told"), [("memory", "you tried to allocate 68719476736 bytes"), ("python memory", "none is left")]
)
def test_a_machine_without_memory_is_4_and_says_what_to_do(how, told, program):
    done = run(program, how)
    assert done.returncode == 4
    assert done.stderr.startswith(f"error: too little memory: {told}. Raise the limit of this process (ulimit -v)")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["good", "--unknown"], ["good", "--count", "many"], ["good", "--share", "nan"], ["good", "extra"], []],
)
def test_usage_is_2(arguments, program):
    done = run(program, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""


def test_usage_error_as_json(program):
    done = run(program, "good", "--count", "many", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["exit_code"] == 2


def test_help_is_0(program):
    done = run(program, "--help")
    assert done.returncode == 0
    assert "A tiny stage." in done.stdout or "Do something." in done.stdout


def run_into(output, program, *arguments, **environment):
    return subprocess.run(
        [sys.executable, str(program), *arguments],
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


STREAMS = [{"PYTHONUNBUFFERED": ""}, {"PYTHONUNBUFFERED": "1"}]
SCREENS = [["good"], ["table"], ["good", "--json"]]


@pytest.mark.parametrize("environment", STREAMS, ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", SCREENS, ids=" ".join)
def test_a_result_that_cannot_be_written_is_4(arguments, environment, program):
    with Path("/dev/full").open("w") as full:
        done = run_into(full, program, *arguments, **environment)
    assert done.returncode == 4
    assert done.stderr.startswith("error: standard output: cannot write: No space left on device")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("environment", STREAMS, ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", SCREENS, ids=" ".join)
def test_a_reader_that_has_gone_does_not_change_the_code(arguments, environment, program):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run_into(writing, program, *arguments, **environment)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("environment", STREAMS, ids=["buffered", "unbuffered"])
def test_an_error_keeps_its_code_where_its_json_cannot_be_written(environment, program):
    with Path("/dev/full").open("w") as full:
        done = run_into(full, program, "ArtefactCorrupt", "--json", **environment)
    assert done.returncode == 3
    assert done.stderr == "error: a/b.json: it went [red]wrong[/red] with 3.5. Do better\n"


@pytest.mark.parametrize("environment", STREAMS, ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("place", ["full", "closed"])
def test_a_log_that_cannot_be_written_changes_no_code(place, environment, program):
    for arguments, code in ((["ArtefactCorrupt", "--json"], 3), (["noisy"], 0), (["bug"], 5)):
        reading, writing = os.pipe()
        os.close(reading)
        if place == "full":
            writing = os.open("/dev/full", os.O_WRONLY)
        done = subprocess.run(
            [sys.executable, str(program), *arguments],
            stdout=subprocess.PIPE,
            stderr=writing,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, **environment},
        )
        os.close(writing)
        assert done.returncode == code, arguments
        assert done.stdout == ("counted 1\n" if code == 0 else done.stdout)


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", b"Gr??e ??\n?\n"),
        ("latin-1", b"Gr\xfc\xdfe ??\n?\n"),
        ("ascii:backslashreplace", rb"Gr\xfc\xdfe \u6771\u4eac" + b"\n" + rb"\u2714" + b"\n"),
        ("utf-8", "Grüße 東京\n✔\n".encode()),
    ],
)
def test_what_an_output_cannot_show_is_no_defect(program, encoding, shown):
    command = [sys.executable, str(program), "pieces"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (0, shown), done.stderr


def test_the_end_of_a_file_is_no_interruption(program):
    done = run(program, "torn", "--json")
    assert done.returncode == 5
    assert json.loads(done.stdout)["message"] == "internal error: EOFError: Ran out of input"


def test_pieces_of_an_answer_end_quietly_where_their_reader_has_gone():
    program = "from shearling.command_line import print_piece\nfor _ in range(99):\n    print_piece('x' * 9999)\n"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_a_standard_output_a_command_does_its_work(program):
    command = ["sh", "-c", 'exec "$0" "$@" >&-', sys.executable, str(program), "good"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_pieces_of_an_answer_go_nowhere_without_a_standard_output_and_name_it_where_it_is_full():
    pieces = "from shearling.command_line import print_piece; print_piece('some'); print_piece('thing')"
    command = ["sh", "-c", 'exec "$0" "$@" >&-', sys.executable, "-c", pieces]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", pieces], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert done.stderr.splitlines()[-1] == "OSError: [Errno 28] No space left on device: 'standard output'"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_unwind_and_keep_their_codes(number, code, program):
    # A shell's background jobs start with SIGINT ignored, and their children inherit that.
    start = "import os, signal; signal.signal({}, signal.SIG_DFL); os.execv({!r}, {!r})"
    command = [sys.executable, str(program), "sleep"]
    process = subprocess.Popen(
        [sys.executable, "-c", start.format(int(number), sys.executable, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "sleeping\n"
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert output == "cleaned\n"
    # An export keeps nothing, and a search that replaces another one needs --force again.
    assert "run the same command again" in errors
    assert "without --force" not in errors


@pytest.mark.parametrize("form", ["package", "module"])
def test_foreign_stage_package_is_refused(form, program, tmp_path):
    foreign = tmp_path / "foreign"
    (foreign / "search").mkdir(parents=True)
    if form == "package":
        (foreign / "search" / "__init__.py").write_text("raise SystemExit('never imported')")
    else:
        (foreign / "search.py").write_text("raise SystemExit('never imported')")
    done = run(program, "good", "--json", PYTHONPATH=os.pathsep.join((str(foreign), os.environ["PYTHONPATH"])))
    assert done.returncode == 4
    body = json.loads(done.stdout)
    assert body["error"] == "PackageShadowed"
    assert str(foreign) in body["message"]


def test_frame_is_fast_and_imports_nothing_heavy(program):
    heavy = "torch transformers openvino nncf numpy pandas matplotlib"
    check = (
        f"import sys; import shearling.command_line; print([name for name in {heavy.split()} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=Path(program).parent
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "given", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "PASSIVE"}, {"GOMP_SPINCOUNT": "7"}]
)
def test_waiting_threads_spin_a_moment_unless_the_user_wants_otherwise(given, monkeypatch):
    """The count of spins goes before the policy, so that it must not be there where the user has chosen one."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, given.get(name, ""))
        if name not in given:
            monkeypatch.delenv(name)
    monkeypatch.setenv("KMP_BLOCKTIME", "7")
    share_processors()
    found = {name: os.environ[name] for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if name in os.environ}
    assert found == (given or {"GOMP_SPINCOUNT": "1000"})
    assert os.environ["KMP_BLOCKTIME"] == "7"


def test_training_decides_how_threads_wait_before_torch_is_loaded(tmp_path):
    """The runtime of the threads reads the variable once, when it is loaded."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            os.write(2, f'torch after {os.environ.get(\"GOMP_SPINCOUNT\")}\\n'.encode())\n"
        "            os._exit(9)\n"
        "sys.meta_path.insert(0, Watch())\n"
    )
    root, recipe = Path(__file__).resolve().parents[2], write_tiny_recipe(tmp_path / "tiny")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-m", "train", "--recipe", str(recipe), "--output", str(tmp_path / "run")],
        cwd=root,
        env={**environment, "PYTHONPATH": f"{tmp_path}:{root}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (9, "torch after 1000")


TELEMETRY = """
import shearling.command_line
if {quiet}:
    shearling.command_line.quiet_libraries()
from openvino.tools.ovc.telemetry_utils import init_ovc_telemetry
print(type(init_ovc_telemetry()).__module__)
"""


@pytest.mark.parametrize("quiet", [True, False])
def test_no_telemetry_is_sent_though_nobody_forbade_it(quiet, tmp_path):
    """OpenVINO's takes an identity in the home directory before it sends anything; left to itself it does."""
    variables = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, "-c", TELEMETRY.format(quiet=quiet)],
        capture_output=True,
        text=True,
        check=True,
        env={**variables, "HOME": str(tmp_path)},
    )
    assert done.stdout.strip().startswith("openvino.tools" if quiet else "openvino_telemetry")
    assert list(tmp_path.rglob("openvino_ga_cid") if quiet else ()) == []
    assert (tmp_path / "intel").exists() is not quiet
