"""Several processes train one super-adapter: the same as one process with the larger batch, and they stop together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shearling.artefact import open_artefact
from shearling.elastic.super_network import ADAPTER_FILE
from shearling.recipe.recipe import read_recipe
from shearling.run import Run
from tests.support.documents import ROOT
from tests.support.tiny_runs import write_tiny_recipe
from train.stage import run_recipe
from train.super_adapter.resumption import CHECKPOINTS, INPUTS_FILE, continue_or_set_aside
from train.super_adapter.trainer import newest_checkpoint

pytestmark = pytest.mark.slow

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def start_two(
    recipe: Path, run: Path, *options: str, program: tuple[str, ...] = ("-m", "train")
) -> subprocess.Popen[str]:
    command = [*LAUNCH, *program, "--recipe", str(recipe), "--output", str(run), "--json", *options]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(Run(run).super_adapter / ADAPTER_FILE)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> tuple[Path, str]:
    directory = tmp_path_factory.mktemp("two")
    recipe = write_tiny_recipe(directory, train={"steps": 8, "batch_size": 2, "warmup_steps": 0})
    process = start_two(recipe, directory / "run")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return directory / "run", out


def test_two_ranks_train_what_one_trains_with_twice_the_batch(two_ranks, tmp_path):
    run, _ = two_ranks
    recipe = write_tiny_recipe(tmp_path, train={"steps": 8, "batch_size": 4, "warmup_steps": 0})
    run_recipe(read_recipe(recipe), tmp_path / "run")
    one, two = adapter(tmp_path / "run"), adapter(run)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    assert any(tensor.any() for name, tensor in two.items() if "lora_B" in name)


def test_only_rank_0_writes_and_speaks(two_ranks):
    run, out = two_ranks
    assert json.loads(out)["status"] == "ok"
    for kind in ("task", "base", "sparse", "super_adapter"):
        open_artefact(run / kind, kind=kind)
    assert not list(run.glob(".*"))


def test_two_ranks_replace_a_finished_run(two_ranks, tmp_path):
    copy = shutil.copytree(two_ranks[0].parent, tmp_path / "copy")
    before = (copy / "run" / "super_adapter" / ADAPTER_FILE).stat().st_mtime_ns
    process = start_two(copy / "recipe.toml", copy / "run", "--force")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert (copy / "run" / "super_adapter" / ADAPTER_FILE).stat().st_mtime_ns > before
    for name, tensor in adapter(two_ranks[0]).items():
        torch.testing.assert_close(adapter(copy / "run")[name], tensor, msg=name)


def test_ranks_that_see_different_memory_train_in_the_same_form(tmp_path):
    program = tmp_path / "starved.py"
    program.write_text(
        "import os, runpy, train.estimates\n"
        "train.estimates.available_memory_bytes = lambda: 2**50 if os.environ['RANK'] == '0' else 0\n"
        "runpy.run_module('train', run_name='__main__')\n"
    )
    recipe = write_tiny_recipe(tmp_path, train={"steps": 2, "batch_size": 2})
    process = start_two(recipe, tmp_path / "run", program=(str(program),))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "in less memory, and slower" in err, "rank 0 alone has enough"


def test_a_signal_to_the_launcher_stops_all_ranks_at_one_step(tmp_path):
    recipe = write_tiny_recipe(tmp_path, train={"steps": 4000, "batch_size": 2, "save_steps": 9})
    run = tmp_path / "run"
    checkpoints = run / ".super_adapter.partial" / CHECKPOINTS
    process = start_two(recipe, run)
    deadline_s = time.monotonic() + 240
    while newest_checkpoint(checkpoints) is None and time.monotonic() < deadline_s and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "stopping after this step" in err
    assert not (run / "super_adapter").exists()
    last = newest_checkpoint(checkpoints)
    assert last is not None, err
    # Every rank has left its random state in the same checkpoint.
    assert {file.name for file in last.glob("rng_state_*.pth")} == {"rng_state_0.pth", "rng_state_1.pth"}
    # One process alone would make other steps of the rows, and of `epochs` another number.
    begun = json.loads((checkpoints.parent / INPUTS_FILE).read_text())
    assert begun["recipe"].pop("processes") == 2
    continue_or_set_aside(run / "super_adapter", inputs=begun["recipe"], parents=begun["parents"])
    assert newest_checkpoint(run / "super_adapter-unfinished-1" / CHECKPOINTS) is not None
