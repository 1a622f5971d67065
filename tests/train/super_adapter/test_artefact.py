"""Training of the super-adapter: it learns, it resumes bit for bit, it leaves the frozen model alone, and it stops
honestly."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors.torch import load_file

import shearling.artefact
from shearling.artefact import open_artefact
from shearling.command_line import Terminated
from shearling.elastic.grid_file import GRID_FILE
from shearling.elastic.mask import MASK_FILE, check_masked_zeros, load_masks
from shearling.elastic.reordering import REORDERING_FILE
from shearling.elastic.search_space import read_search_space
from shearling.elastic.super_network import ADAPTER_FILE, load_super_network
from shearling.errors import OutputExists, OutputLocked, RecipeInvalid, TrainingDiverged
from shearling.model.checkpoint import load_model, save_model
from shearling.recipe.recipe import Recipe, read_recipe
from shearling.run import Run
from tests.support.signal_stack import leave_signal_stack
from tests.support.tiny_models import tiny_tokenizer, wide_model
from tests.support.tiny_runs import tiny_recipe, write_tiny_recipe
from train.stage import run_recipe
from train.super_adapter import artefact as super_adapter
from train.super_adapter.artefact import LOG_FILE, draw_by_recipe
from train.super_adapter.choice_sampler import RankSampler
from train.super_adapter.resumption import CHECKPOINTS, INPUTS_FILE, deciding_inputs, differing_keys
from train.super_adapter.trainer import newest_checkpoint

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def adapter_bytes(run: Path) -> bytes:
    return (Run(run).super_adapter / ADAPTER_FILE).read_bytes()


def unfinished(run: Path) -> Path:
    return run / ".super_adapter.partial" / CHECKPOINTS


def interrupt(*_: object, **__: object) -> NoReturn:
    raise KeyboardInterrupt


def run_until_the_last_step(
    recipe: Recipe, run: Path, monkeypatch: pytest.MonkeyPatch, *, at: tuple[object, str] = (super_adapter, "_write")
) -> None:
    """Interrupted when everything is trained, and nothing is written."""
    with monkeypatch.context() as patched:
        patched.setattr(*at, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, run)


def start(recipe: Path, run: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "train", "--recipe", str(recipe), "--output", str(run), *options]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_new_checkpoint(process: subprocess.Popen[str], run: Path) -> None:
    before, deadline_s = newest_checkpoint(unfinished(run)), time.monotonic() + 240
    while newest_checkpoint(unfinished(run)) == before:
        if process.poll() is not None or time.monotonic() > deadline_s:
            process.kill()
            pytest.fail(f"no checkpoint was written (exit {process.returncode}): {process.communicate()}")
        time.sleep(0.01)


@pytest.mark.parametrize("masked", [True, False])
def test_training_lowers_the_loss_and_leaves_the_frozen_model_alone(masked, tmp_path):
    recipe = tiny_recipe(tmp_path, family="llama", masked=masked, train={"steps": 40, "batch_size": 8})
    made = run_recipe(recipe, tmp_path / "run")
    log = [json.loads(line) for line in (made["super_adapter"].path / LOG_FILE).read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]

    network = load_super_network(Run(tmp_path / "run"))
    network.activate(network.space.minimal())
    network.model(torch.arange(1, 9)[None])
    frozen = load_model(made["sparse"].path)
    masks = load_masks(made["sparse"].path / MASK_FILE)
    originals = dict(frozen.named_parameters())
    kept = {
        name: tensor for name, tensor in network.model.named_parameters() if not name.endswith(("lora_a", "lora_b"))
    }
    assert kept.keys() == originals.keys()
    assert all(torch.equal(tensor, originals[name]) for name, tensor in kept.items())
    check_masked_zeros(frozen, masks)
    assert open_artefact(made["sparse"].path, kind="sparse").sha256 == made["sparse"].sha256
    moved = load_file(made["super_adapter"].path / ADAPTER_FILE)
    assert all(moved[name].any() for name in moved if "lora_B" in name)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the children run: bit identity holds for one thread count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Momentum, schedule, shuffling, dropout, accumulation and the sampler must all continue, so none of them is trivial
# here.
CONTINUED = {
    "steps": 80,
    "batch_size": 2,
    "save_steps": 7,
    "schedule": "cosine",
    "gradient_accumulation": 2,
    "group_by_length": True,
}


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_run_killed_and_terminated_ends_bit_identical(tmp_path):
    recipe, run = write_tiny_recipe(tmp_path, masked=False, dropout=0.1, train=CONTINUED), tmp_path / "interrupted"
    for number, expected in ((signal.SIGKILL, -9), (signal.SIGTERM, 143)):
        process = start(recipe, run)
        wait_for_new_checkpoint(process, run)
        process.send_signal(number)
        _, err = process.communicate(timeout=300)
        assert process.returncode == expected, err
        assert not (run / "super_adapter").exists()
        assert newest_checkpoint(unfinished(run))
    process = start(recipe, run, "--json")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "continuing from step" in err
    assert json.loads(out)["status"] == "ok"
    run_recipe(read_recipe(recipe), tmp_path / "straight")
    assert adapter_bytes(run) == adapter_bytes(tmp_path / "straight")
    assert not list(run.glob(".*"))


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_leaves_a_checkpoint_of_the_step_it_arrived_in(number, error, tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path, train={"steps": 9, "save_steps": 100})
    run_recipe(recipe, tmp_path / "straight")
    draw = RankSampler.draw

    def draw_and_signal(self: RankSampler) -> dict[str, int]:
        if self.drawn == 4:
            os.kill(os.getpid(), number)
        return draw(self)

    handler = signal.getsignal(number)
    leave_signal_stack()
    monkeypatch.setattr(RankSampler, "draw", draw_and_signal)
    with pytest.raises(error):
        run_recipe(recipe, tmp_path / "run")
    monkeypatch.undo()
    assert signal.getsignal(number) == handler
    assert newest_checkpoint(unfinished(tmp_path / "run")).name == "checkpoint-5"
    run_recipe(recipe, tmp_path / "run")
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "straight")


@pytest.mark.parametrize("name", ["_write", "_seal"])
def test_a_run_killed_after_its_last_step_only_writes(name, tmp_path, monkeypatch, capsys):
    recipe = tiny_recipe(tmp_path)
    run_recipe(recipe, tmp_path / "straight")
    shutil.copytree(tmp_path / "straight", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "super_adapter")
    module = super_adapter if name == "_write" else shearling.artefact
    run_until_the_last_step(recipe, tmp_path / "run", monkeypatch, at=(module, name))
    capsys.readouterr()
    run_recipe(recipe, tmp_path / "run")
    assert f"continuing from step {recipe.train.steps}" in capsys.readouterr().err
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "straight")
    assert not {"checkpoints", "rows", "inputs.json"} & {
        path.name for path in Run(tmp_path / "run").super_adapter.iterdir()
    }


def test_a_half_written_checkpoint_is_passed_over(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path)
    run_recipe(recipe, tmp_path / "straight")
    run_until_the_last_step(recipe, tmp_path / "run", monkeypatch)
    newest, _ = sorted(unfinished(tmp_path / "run").glob("checkpoint-*"), reverse=True)
    state = newest / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    half = newest.with_name("checkpoint-900")
    half.mkdir()
    # What a power failure leaves of files that were not on the disk yet.
    empty = newest.with_name("checkpoint-901")
    shutil.copytree(newest, empty)
    (empty / "trainer_state.json").write_text("{}")
    (empty / "optimizer.pt").write_bytes(b"")
    run_recipe(recipe, tmp_path / "run")
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "straight")


def test_an_unfinished_training_of_another_recipe_is_set_aside_and_can_go_on(tmp_path, monkeypatch, capsys):
    recipe, run = tiny_recipe(tmp_path), tmp_path / "run"
    run_until_the_last_step(recipe, run, monkeypatch)
    changed = tiny_recipe(tmp_path, train={"learning_rate": 0.02})
    capsys.readouterr()
    run_recipe(changed, run)
    said = capsys.readouterr().err
    assert "continuing" not in said
    aside = run / "super_adapter-unfinished-1"
    assert f"checkpoint 6, is set aside as {aside}: this one differs in train.learning_rate;" in said
    run_recipe(changed, tmp_path / "straight")
    assert adapter_bytes(run) == adapter_bytes(tmp_path / "straight")

    shutil.rmtree(run / "super_adapter")
    aside.rename(unfinished(run).parent)
    run_recipe(recipe, run)
    assert "continuing from step 6" in capsys.readouterr().err
    run_recipe(recipe, tmp_path / "first")
    assert adapter_bytes(run) == adapter_bytes(tmp_path / "first")


def ordered_by(text: Path) -> Recipe:
    """A recipe whose channels are ordered by what a text activates."""
    recipe = tiny_recipe(text.parent, width={"feed_forward": [100, 60], "reorder": "wanda"})
    calibration = recipe.width.calibration.model_copy(update={"path": text, "samples": 4, "seq_len": 16})
    return recipe.model_copy(update={"width": recipe.width.model_copy(update={"calibration": calibration})})


def test_the_order_of_channels_stays_what_the_adapter_was_trained_in(tmp_path, monkeypatch, capsys):
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("the quick brown fox jumps over the lazy dog " * 99)
    recipe = ordered_by(text)
    run_until_the_last_step(recipe, run, monkeypatch)
    begun = (unfinished(run).parent / REORDERING_FILE).read_bytes()
    with monkeypatch.context() as patched:
        # Another number of threads, or another processor, may find another order.
        patched.setattr(super_adapter, "find_reordering", lambda *_, **__: pytest.fail("ordered anew"))
        run_recipe(recipe, run)
    assert (run / "super_adapter" / REORDERING_FILE).read_bytes() == begun
    shutil.rmtree(run / "super_adapter")
    run_until_the_last_step(recipe, run, monkeypatch)
    text.write_text("rain falls on a park, and a lazy zebra sleeps " * 99)
    capsys.readouterr()
    run_recipe(recipe, run)
    assert "this one differs in width_text;" in capsys.readouterr().err
    assert (run / "super_adapter" / REORDERING_FILE).read_bytes() != begun


def test_the_grid_stays_the_one_that_the_adapter_was_trained_on(tmp_path, monkeypatch):
    save_model(wide_model(), tiny_tokenizer(), tmp_path / "source")
    recipe, run = tiny_recipe(tmp_path, quantization={"bits": 4, "group_size": 32}), tmp_path / "run"
    run_recipe(recipe, tmp_path / "straight")
    run_until_the_last_step(recipe, run, monkeypatch)
    shutil.rmtree(newest_checkpoint(unfinished(run)))
    with monkeypatch.context() as patched:
        # Another processor may round to other integers.
        patched.setattr(super_adapter, "find_grids", lambda *_, **__: pytest.fail("rounded anew"))
        run_recipe(recipe, run)
    grids = [(tmp_path / name / "super_adapter" / GRID_FILE).read_bytes() for name in ("run", "straight")]
    assert grids[0] == grids[1]
    assert adapter_bytes(run) == adapter_bytes(tmp_path / "straight")
    assert not list((run / "super_adapter").glob("*.unfinished"))


def test_no_unfinished_training_takes_the_name_of_another(tmp_path, monkeypatch):
    run = tmp_path / "run"
    for rate in (0.01, 0.02, 0.03):
        run_until_the_last_step(tiny_recipe(tmp_path, train={"learning_rate": rate}), run, monkeypatch)
    rates = [
        json.loads((run / f"super_adapter-unfinished-{number}" / INPUTS_FILE).read_text())["recipe"]["train"]
        for number in (1, 2)
    ]
    assert [rate["learning_rate"] for rate in rates] == [0.01, 0.02]


def test_a_training_without_a_checkpoint_leaves_nothing_behind(tmp_path, monkeypatch):
    run = tmp_path / "run"
    run_until_the_last_step(tiny_recipe(tmp_path), run, monkeypatch, at=(super_adapter, "_fit"))
    run_recipe(tiny_recipe(tmp_path, train={"learning_rate": 0.02}), run)
    assert sorted(path.name for path in run.iterdir()) == ["base", "sparse", "super_adapter", "task"]


def test_what_decides_no_number_continues_a_training(tmp_path, monkeypatch, capsys):
    train = {"steps": 9, "save_steps": 4}
    recipe = tiny_recipe(tmp_path, train=train)
    run_recipe(recipe, tmp_path / "straight")
    run_until_the_last_step(recipe, tmp_path / "run", monkeypatch)
    shutil.rmtree(newest_checkpoint(unfinished(tmp_path / "run")))
    other = tiny_recipe(
        tmp_path,
        train={
            **train,
            "save_steps": 3,
            "memory": "lean",
            "report_to": ["tensorboard"],
            "gradient_checkpointing": True,
        },
    )
    capsys.readouterr()
    run_recipe(other.model_copy(update={"name": "renamed"}), tmp_path / "run")
    said = capsys.readouterr().err
    assert "continuing from step 8" in said
    assert "save_steps" not in said
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "straight")


def test_a_training_that_goes_on_writes_checkpoints_as_often_as_it_is_told_now(tmp_path, monkeypatch, capsys):
    draw = RankSampler.draw

    def draw_until(last: int) -> Callable[[RankSampler], dict[str, int]]:
        return lambda sampler: interrupt() if sampler.drawn == last else draw(sampler)

    for save_steps, last, expected in ((4, 5, "checkpoint-4"), (3, 7, "checkpoint-6")):
        recipe = tiny_recipe(tmp_path, train={"steps": 9, "save_steps": save_steps})
        with monkeypatch.context() as patched:
            patched.setattr(RankSampler, "draw", draw_until(last))
            with pytest.raises(KeyboardInterrupt):
                run_recipe(recipe, tmp_path / "run")
        newest = newest_checkpoint(unfinished(tmp_path / "run"))
        assert newest is not None
        assert newest.name == expected
    assert "save_steps" not in capsys.readouterr().err
    run_recipe(recipe, tmp_path / "run")
    run_recipe(recipe, tmp_path / "straight")
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "straight")


def test_what_was_begun_before_a_key_existed_is_continued(tmp_path, monkeypatch, capsys):
    more = {"name": "more", "path": "headlines.jsonl", "text": "{{ headline }}"}
    recipe, run = tiny_recipe(tmp_path, data=[more]), tmp_path / "run"
    run_until_the_last_step(recipe, run, monkeypatch)
    file = unfinished(run).parent / INPUTS_FILE
    inputs = json.loads(file.read_text())
    del inputs["recipe"]["processes"]
    del inputs["recipe"]["train"]["draw"], inputs["recipe"]["adapter"]["scaling"], inputs["recipe"]["width"]
    del inputs["recipe"]["data"][0]["train_on_end"]
    file.write_text(json.dumps(inputs))
    capsys.readouterr()
    run_recipe(recipe, run)
    assert "continuing from step" in capsys.readouterr().err


def test_what_was_begun_before_a_default_changed_is_not_taken_for_what_it_means_today(tmp_path, monkeypatch, capsys):
    recipe, run = tiny_recipe(tmp_path), tmp_path / "run"
    run_until_the_last_step(recipe, run, monkeypatch)
    file = unfinished(run).parent / INPUTS_FILE
    inputs = json.loads(file.read_text())
    del inputs["recipe"]["train"]["draw"], inputs["recipe"]["train"]["largest_first"]
    del inputs["recipe"]["adapter"]["scaling"]
    file.write_text(json.dumps(inputs))
    shown = tiny_recipe(tmp_path, train={"draw": None, "largest_first": None}, scaling="rank")
    assert (shown.train.draw, shown.train.largest_first) == ("shared", 0.5)
    capsys.readouterr()
    run_recipe(shown, run)
    said = capsys.readouterr().err
    assert "continuing" not in said
    assert "this one differs in adapter.scaling, train.draw, train.largest_first;" in said


def test_how_one_sub_network_would_be_drawn_decides_nothing():
    adapter = {"r": 4, "groups": [{"name": "all", "modules": ["q_proj"], "ranks": [4]}]}
    drawn = [{"draw": "independent", "largest_first": 0.0}, {"draw": "shared", "largest_first": 0.5}]
    inputs = [
        {"adapter": {**adapter, "scaling": scaling}, "width": None, "train": {"steps": 3, **train}}
        for scaling, train in zip(("constant", "rank"), drawn, strict=True)
    ]
    assert deciding_inputs(inputs[0]) == deciding_inputs(inputs[1])
    several = {**adapter, "groups": [*adapter["groups"], {"name": "k", "modules": ["k_proj"], "ranks": [4, 2]}]}
    widths = {"groups": [{"name": "w", "part": "feed_forward", "widths": [8, 4]}]}
    for change in ({"adapter": several}, {"width": widths}):
        first, second = (deciding_inputs({**given, **change}) for given in inputs)
        assert differing_keys(first, second)[-2:] == ["train.draw", "train.largest_first"]


@pytest.mark.parametrize("draw", ["nested", "shared"])
def test_ranks_that_open_one_after_the_other_go_on_where_they_were(draw, tmp_path, monkeypatch):
    train = {"steps": 9, "save_steps": 4, "draw": draw, "shrinking": "progressive", "largest_first": 0.3}
    recipe = tiny_recipe(tmp_path, train=train)
    made = run_recipe(recipe, tmp_path / "straight")["super_adapter"]
    # What was drawn beside the lists is no choice of a search.
    assert {group.values for group in read_search_space(made.path / "search_space.json").groups} == {(6, 4, 2)}
    run_until_the_last_step(recipe, tmp_path / "run", monkeypatch)
    shutil.rmtree(newest_checkpoint(unfinished(tmp_path / "run")))
    run_recipe(recipe, tmp_path / "run")
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "straight")


def test_gradient_checkpointing_trains_the_same_adapter(tmp_path):
    for name, on in (("without", False), ("with", True)):
        run_recipe(tiny_recipe(tmp_path, family="llama", train={"gradient_checkpointing": on}), tmp_path / name)
    without, with_ = (load_file(Run(tmp_path / name).super_adapter / ADAPTER_FILE) for name in ("without", "with"))
    assert without.keys() == with_.keys()
    for name, tensor in without.items():
        torch.testing.assert_close(tensor, with_[name], rtol=0, atol=1e-5)


def test_epochs_and_accumulation_count_as_the_trainer_counts(tmp_path, capsys):
    train = {"epochs": 2, "steps": None, "batch_size": 8, "gradient_accumulation": 2}
    made = run_recipe(tiny_recipe(tmp_path, train=train), tmp_path / "run")
    rows = made["task"].manifest.details["rows"]["train"]
    steps = 2 * math.ceil(math.ceil(rows / 8) / 2)
    assert f": {steps} steps" in capsys.readouterr().err
    log = [json.loads(line) for line in (made["super_adapter"].path / LOG_FILE).read_text().splitlines()]
    assert log[-1]["step"] == steps


@pytest.mark.parametrize("length", [{"epochs": 3}, {"steps": 5}])
def test_parts_of_the_steps_are_of_micro_batches_that_there_are(length, tmp_path, monkeypatch):
    """The accumulation at the end of an epoch is cut short."""
    told = []

    def draw(section, space, micro_batches, *, seed):
        told.append((micro_batches, sampler := draw_by_recipe(section, space, micro_batches, seed=seed)))
        return sampler

    monkeypatch.setattr(super_adapter, "draw_by_recipe", draw)
    train = {"epochs": None, "steps": None, **length, "batch_size": 8, "gradient_accumulation": 4}
    made = run_recipe(tiny_recipe(tmp_path, train=train), tmp_path / "run")
    batches = math.ceil(made["task"].manifest.details["rows"]["train"] / 8)
    assert batches % 4, "or there is nothing to see"
    [(micro_batches, sampler)] = told
    assert micro_batches == sampler.drawn
    if "epochs" in length:
        assert micro_batches == 3 * batches


def test_a_loss_that_is_not_finite_stops_with_step_and_rate_and_keeps_the_checkpoint(tmp_path):
    recipe = write_tiny_recipe(tmp_path, train={"learning_rate": 1e30, "save_steps": 1})
    with pytest.raises(TrainingDiverged, match=r"the loss is (nan|inf) at step 2, learning rate 1\.00e\+30") as caught:
        run_recipe(read_recipe(recipe), tmp_path / "run")
    assert caught.value.exit_code == 1
    kept = list(unfinished(tmp_path / "run").glob("checkpoint-*"))
    assert [path.name for path in kept] == ["checkpoint-1"]
    assert all(tensor.isfinite().all() for tensor in load_file(kept[0] / ADAPTER_FILE).values())
    assert not (tmp_path / "run" / "super_adapter").exists()


def test_a_finished_run_is_not_replaced_unless_forced(tmp_path):
    recipe, run = tiny_recipe(tmp_path), tmp_path / "run"
    made = run_recipe(recipe, run)
    before = adapter_bytes(run)
    with pytest.raises(OutputExists):
        run_recipe(recipe, run)
    again = run_recipe(recipe, run, force=True)
    assert adapter_bytes(run) == before
    assert again.keys() == made.keys()
    (run / "super_adapter" / "notes.txt").write_text("mine")
    with pytest.raises(OutputExists, match=r"notes\.txt"):
        run_recipe(recipe, run, force=True)
    assert adapter_bytes(run) == before


def test_force_touches_nothing_of_a_training_that_runs(tmp_path):
    recipe, run = tiny_recipe(tmp_path, train={"steps": 2}), Run(tmp_path / "run")
    run_recipe(recipe, run.path)
    before = {path: open_artefact(path, kind=path.name).sha256 for path in (run.task, run.base, run.sparse)}
    shutil.rmtree(run.super_adapter)
    hold = (
        "import sys, time\nfrom pathlib import Path\nfrom shearling.artefact import write_artefact\n"
        "with write_artefact(Path(sys.argv[1]), kind='super_adapter', resumable=True) as draft:\n"
        "    (draft.directory / 'half').write_text('x')\n    print('writing', flush=True)\n    time.sleep(120)"
    )
    command = [sys.executable, "-c", hold, str(run.super_adapter)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "writing\n"
            with pytest.raises(OutputLocked):
                run_recipe(recipe, run.path, force=True)
        finally:
            process.kill()
    assert (unfinished(run.path).parent / "half").is_file()
    assert before == {path: open_artefact(path, kind=path.name).sha256 for path in before}


def test_the_seed_decides_the_adapter(tmp_path):
    for seed in (3, 4):
        run_recipe(tiny_recipe(tmp_path, seed=seed), tmp_path / str(seed))
    assert adapter_bytes(tmp_path / "3") != adapter_bytes(tmp_path / "4")


def test_the_artefact_is_a_peft_adapter_with_a_search_space(tmp_path):
    made = run_recipe(tiny_recipe(tmp_path), tmp_path / "run")
    adapter = made["super_adapter"]
    config = json.loads((adapter.path / "adapter_config.json").read_text())
    space = read_search_space(adapter.path / "search_space.json")
    assert (config["r"], config["lora_alpha"]) == (space.adapter.r_max, space.adapter.alpha) == (6, 12)
    assert sorted(config["target_modules"]) == sorted(space.ranks(space.maximal()))
    assert adapter.manifest.parents == {"sparse": made["sparse"].sha256, "task": made["task"].sha256}
    assert sorted(adapter.manifest.files) == ["adapter_config.json", ADAPTER_FILE, "search_space.json", LOG_FILE]


def test_groups_that_do_not_fit_are_refused_before_training(tmp_path):
    recipe = write_tiny_recipe(tmp_path)
    recipe.write_text(recipe.read_text().replace('"up_proj"', '"dense_h_to_4h"'))
    with pytest.raises(RecipeInvalid, match=r"fits no linear module.*up_proj"):
        run_recipe(read_recipe(recipe), tmp_path / "run")
