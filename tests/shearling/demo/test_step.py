"""Steps: done once, done again where their inputs changed, and faithful to the exit codes of their commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shearling.artefact import open_artefact, write_artefact
from shearling.command_line import Terminated
from shearling.demo.stage_steps import Action, share
from shearling.demo.step import Ledger, Step, carry_out, run_python
from shearling.demo.walk import walk
from shearling.errors import ArtefactError, CheckFailed, EnvironmentFault, OutputExists, ShearlingError, UsageError

COUNT = """
import sys
from pathlib import Path
from shearling.artefact import write_artefact
out, force = Path(sys.argv[1]), "--force" in sys.argv
with write_artefact(out, kind="base", force=force) as draft:
    (draft.directory / "arguments").write_text(" ".join(sys.argv[2:]))
"""


@pytest.fixture
def step(tmp_path):
    source = tmp_path / "input.toml"
    source.write_text("one")
    return Step("make it", ("-c", COUNT, str(tmp_path / "out")), tmp_path / "out", (source,), 1.0)


@pytest.fixture
def ledger_file(tmp_path):
    return tmp_path / "demo.json"


def test_a_step_is_done_once(step, ledger_file):
    assert carry_out(step, Ledger(ledger_file), force=False) is not None
    made = open_artefact(step.output, kind="base").sha256
    assert carry_out(step, Ledger(ledger_file), force=False) is None
    assert open_artefact(step.output, kind="base").sha256 == made


def test_the_time_left_is_a_range_before_anything_was_timed(tmp_path, capfd):
    (tmp_path / "input.toml").write_text("one")
    outputs = [tmp_path / name for name in ("one", "two", "three")]
    commands = [("-c", COUNT, str(output)) for output in outputs]
    actions = [
        Action(Step(f"make {output.name}", command, output, (tmp_path / "input.toml",), 240.0))
        for output, command in zip(outputs, commands, strict=True)
    ]
    walk(actions, tmp_path / "demo.json", scale="full", force=False)
    shown = capfd.readouterr().err
    assert "step 1 of 3, 12 to 21 min left: make one" in shown
    # The first took a second of the four minutes that were expected.
    assert "step 2 of 3, about 1 min left: make two" in shown


def test_a_stage_is_ours_whatever_lies_in_the_directory(tmp_path, monkeypatch):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "__init__.py").write_text("raise SystemExit('this is another package')")
    monkeypatch.chdir(tmp_path)
    assert "python -m train" in run_python(("-m", "train", "--help"), capture=True)


def test_changed_inputs_replace_the_output(step, ledger_file):
    carry_out(step, Ledger(ledger_file), force=False)
    assert (step.output / "arguments").read_text() == ""
    step.inputs[0].write_text("two")
    assert carry_out(step, Ledger(ledger_file), force=False) is not None
    assert (step.output / "arguments").read_text() == "--force"


def test_a_removed_output_is_made_again(step, ledger_file):
    carry_out(step, Ledger(ledger_file), force=False)
    (step.output / "arguments").unlink()
    (step.output / "manifest.json").unlink()
    step.output.rmdir()
    assert carry_out(step, Ledger(ledger_file), force=False) is not None
    assert (step.output / "arguments").read_text() == ""


def test_what_the_demo_did_not_make_is_left_alone(step, ledger_file):
    with write_artefact(step.output, kind="base") as draft:
        (draft.directory / "precious").write_text("mine")
    with pytest.raises(OutputExists) as caught:
        carry_out(step, Ledger(ledger_file), force=False)
    assert str(step.output) in str(caught.value)
    assert (step.output / "precious").read_text() == "mine"
    carry_out(step, Ledger(ledger_file), force=True)
    assert not (step.output / "precious").exists()


def test_what_took_the_place_of_what_the_demo_made_is_left_alone(step, ledger_file):
    carry_out(step, Ledger(ledger_file), force=False)
    with write_artefact(step.output, kind="base", force=True) as draft:
        (draft.directory / "precious").write_text("mine")
    with pytest.raises(OutputExists, match="the demo did not make this"):
        carry_out(step, Ledger(ledger_file), force=False)
    assert (step.output / "precious").read_text() == "mine"


def test_a_step_is_done_wherever_the_command_is_given(tmp_path, monkeypatch):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "input.toml").write_text("one")

    def seen_from(working, demo):
        monkeypatch.chdir(working)
        output = Path(demo, "out")
        command = ("-c", COUNT, str(output), str(Path(demo, "input.toml")))
        step = Step("make it", command, output, (Path(demo, "input.toml"),), 1.0)
        return carry_out(step, Ledger(Path(demo, "demo.json")), force=False)

    assert seen_from(tmp_path, "demo") is not None
    assert seen_from(tmp_path, tmp_path / "demo") is None
    assert seen_from(tmp_path / "demo", ".") is None
    assert seen_from("/", tmp_path / "demo") is None


def test_a_step_that_ended_unrecorded_is_adopted(step, ledger_file):
    ledger = Ledger(ledger_file)
    carry_out(step, ledger, force=False)
    # As if the demo had been killed between the end of the command and its entry.
    ledger.record(step, ledger.find(step).model_copy(update={"output": None}))
    assert carry_out(step, Ledger(ledger_file), force=False) is None
    assert Ledger(ledger_file).find(step).output is not None


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (1, CheckFailed),
        (2, UsageError),
        (3, ArtefactError),
        (4, EnvironmentFault),
        (5, ShearlingError),
        (77, ShearlingError),
    ],
)
def test_exit_codes_pass_through(tmp_path, ledger_file, code, error):
    step = Step("fail", ("-c", f"raise SystemExit({code})"), tmp_path / "out", (), 1.0)
    with pytest.raises(error) as caught:
        carry_out(step, Ledger(ledger_file), force=False)
    assert type(caught.value) is error
    assert caught.value.exit_code == (code if code < 5 else 5)


@pytest.mark.parametrize(("code", "error"), [(130, KeyboardInterrupt), (143, Terminated)])
def test_interruptions_pass_through(tmp_path, ledger_file, code, error):
    step = Step("stop", ("-c", f"raise SystemExit({code})"), tmp_path / "out", (), 1.0)
    with pytest.raises(error):
        carry_out(step, Ledger(ledger_file), force=False)


def test_a_command_that_makes_nothing_is_a_defect(tmp_path, ledger_file):
    with pytest.raises(ShearlingError, match="made nothing"):
        carry_out(Step("idle", ("-c", "pass"), tmp_path / "out", (), 1.0), Ledger(ledger_file), force=False)


def test_json_is_kept_in_a_file(tmp_path, ledger_file):
    script = "import sys, json; assert sys.argv[-1] == '--json'; print(json.dumps({'a': 1}))"
    step = Step("ask", ("-c", script), tmp_path / "answer.json", (), 1.0, keep_json=True)
    carry_out(step, Ledger(ledger_file), force=False)
    assert json.loads(step.output.read_text()) == {"a": 1}
    assert carry_out(step, Ledger(ledger_file), force=False) is None


SLEEPER = """
import os, signal, sys, time
from pathlib import Path
received = []
signal.signal(signal.SIGINT, lambda *_: received.append("INT"))
signal.signal(signal.SIGTERM, lambda *_: received.append("TERM"))
Path(sys.argv[1]).write_text(str(os.getpid()))
deadline = time.monotonic() + 60
while not received and time.monotonic() < deadline:
    time.sleep(0.02)
time.sleep(0.5)
Path(sys.argv[1]).with_name("received").write_text(" ".join(received))
sys.exit({"INT": 130, "TERM": 143}[received[0]])
"""
DEMO = """
import sys
from pathlib import Path
from shearling.command_line import make_app, run_command
from shearling.demo.step import Ledger, Step, carry_out, run_python
from shearling.demo.walk import walk
app = make_app("x")
root = Path(sys.argv[1])
@app.command()
def go() -> None:
    sleep = Step("sleep", ("-c", sys.argv[2], str(root / "pid")), root / "out", (), 1.0)
    carry_out(sleep, Ledger(root / "demo.json"), force=False)
run_command(app, program="x", argv=[])
"""


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_the_child_is_told_once_and_may_save_its_work(tmp_path, name):
    process = subprocess.Popen(
        [sys.executable, "-c", DEMO, str(tmp_path), SLEEPER], stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        while not ((tmp_path / "pid").is_file() and (tmp_path / "pid").read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        if name == "INT":
            # Ctrl-C reaches the whole group.
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == {"INT": 130, "TERM": 143}[name]
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "received").read_text() == name
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_sharing_links_and_follows_changes(tmp_path):
    source, destination = tmp_path / "base", tmp_path / "other" / "base"
    for content in ("one", "two"):
        with write_artefact(source, kind="base", force=source.exists()) as draft:
            Path(draft.directory / "weights").write_text(content)
        share(source, destination)
        share(source, destination)
        assert open_artefact(destination, kind="base").sha256 == open_artefact(source, kind="base").sha256
        assert (destination / "weights").samefile(source / "weights")
    assert [path.name for path in destination.parent.iterdir()] == ["base"]
