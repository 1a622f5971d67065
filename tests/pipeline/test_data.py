"""Whole runs on data as people have it: conversations, texts, tables, several tasks, packed, and validated."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from shearling.artefact import open_artefact
from shearling.errors import DocumentInvalid, ModelUnsupported, OutputExists, PackageMissing, RecipeInvalid
from shearling.evaluation.evaluator import Evaluator
from shearling.evaluation.task import read_rows
from shearling.model.checkpoint import load_model, load_tokenizer
from shearling.recipe.recipe import read_recipe
from tests.support.tiny_runs import HEADLINES, tiny_recipe, write_tiny_recipe
from train.stage import run_recipe
from train.super_adapter import artefact as super_adapter
from train.super_adapter.artefact import LOG_FILE
from train.super_adapter.choice_sampler import RankSampler
from train.super_adapter.resumption import CHECKPOINTS
from train.super_adapter.trainer import newest_checkpoint

WITHOUT_TEMPLATES = dict.fromkeys(HEADLINES)
CHATS = {**WITHOUT_TEMPLATES, "name": "chats", "path": "chats.jsonl", "messages": "conversations", "max_length": 96}
NOTES = {"name": "notes", "path": "notes.csv", "text": "{{ note }}", "max_length": 32}


def write_chats(path: Path, count: int = 60) -> Path:
    turns = [
        [("human", f"Is report {number} sure?"), ("gpt", "yes"), ("human", "And now?"), ("gpt", "no, rain falls")]
        for number in range(count)
    ]
    lines = [json.dumps({"conversations": [{"from": who, "value": text} for who, text in talk]}) for talk in turns]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def write_notes(path: Path, count: int = 120) -> Path:
    rows = [f'"Note {number}: the quick brown fox, and the lazy dog"\n' for number in range(count)]
    path.write_text("".join(["note\n", *rows]))
    return path


def log_of(run: Path, name: str = "super_adapter") -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / name / LOG_FILE).read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [entry["loss"] for entry in log_of(run) if "loss" in entry]


def test_conversations_are_learnt_and_measured(tmp_path):
    write_chats(tmp_path / "chats.jsonl")
    recipe = tiny_recipe(tmp_path, task=CHATS, train={"steps": 30})
    made = run_recipe(recipe, tmp_path / "run")
    assert list(made) == ["task", "base", "sparse", "super_adapter"]
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]
    row = read_rows(tmp_path / "run" / "task", "train")[0]
    assert row.completion == "no, rain falls"
    assert row.learnt is not None
    assert len(row.learnt) == 2
    evaluator = Evaluator("chats", split="validation", include_path=tmp_path / "run" / "task")
    base = tmp_path / "run" / "base"
    found = evaluator.on_torch(load_model(base), load_tokenizer(base), precision="fp32")()
    assert found.n == made["task"].manifest.details["rows"]["validation"]


def test_the_template_is_part_of_what_the_rows_are_made_of(tmp_path):
    write_chats(tmp_path / "chats.jsonl")
    recipe = tiny_recipe(tmp_path, task=CHATS, train={"steps": 2})
    run_recipe(recipe, tmp_path / "run")
    template = tmp_path / "source" / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "<|im_start|>the "))
    for made in ("base", "sparse", "super_adapter"):
        shutil.rmtree(tmp_path / "run" / made)
    with pytest.raises(OutputExists, match="made from another chat template"):
        run_recipe(recipe, tmp_path / "run")
    made = run_recipe(recipe, tmp_path / "run", force=True)
    assert read_rows(made["task"].path, "train")[0].prompt.startswith("<|im_start|>the user")


def test_evaluation_reads_a_conversation_as_training_does(tmp_path):
    """A tokenizer that puts a token before every text must not put it before what a template has written."""
    from tokenizers.processors import TemplateProcessing

    from shearling.evaluation.evaluator import torch_scorer
    from tests.support.tiny_models import FAMILIES, tiny_tokenizer
    from train.super_adapter.tokenised_rows import IGNORED_LABEL, RowTokeniser

    write_chats(tmp_path / "chats.jsonl")
    made = run_recipe(tiny_recipe(tmp_path, task=CHATS, train={"steps": 2}), tmp_path / "run")
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|pad|> $A", special_tokens=[("<|pad|>", 0)]
    )
    assert tokenizer("hi")["input_ids"][0] == 0
    evaluator = Evaluator("chats", split="validation", include_path=made["task"].path)
    scorer = torch_scorer(FAMILIES["llama"](), tokenizer)
    asked: list[list[int]] = []
    score = scorer._loglikelihood_tokens
    scorer._loglikelihood_tokens = lambda requests, **_: (
        asked.extend([*context, *answer] for _, context, answer in requests) or score(requests)
    )
    evaluator.measure(scorer)
    rows = read_rows(made["task"].path, "validation")
    trained = [row["input_ids"] for row in RowTokeniser(tokenizer, 512, train_on_prompt=False)(rows)]
    assert all(whole[: len(ids)] == ids for whole, ids in zip(trained, asked, strict=True))
    assert IGNORED_LABEL not in asked[0]


def test_a_chat_model_without_its_template_is_refused(tmp_path):
    write_chats(tmp_path / "chats.jsonl")
    recipe = tiny_recipe(tmp_path, task=CHATS)
    (tmp_path / "source" / "chat_template.jinja").unlink()
    with pytest.raises(ModelUnsupported, match="no chat template"):
        run_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "task").exists()


def test_a_row_that_is_no_conversation_stops_the_run(tmp_path):
    with write_chats(tmp_path / "chats.jsonl").open("a") as stream:
        stream.write(json.dumps({"conversations": [{"from": "human", "value": "anybody?"}]}) + "\n")
    with pytest.raises(DocumentInvalid, match="the assistant says nothing") as caught:
        run_recipe(tiny_recipe(tmp_path, task=CHATS), tmp_path / "run")
    assert caught.value.where == "row 61, conversations"
    assert not list((tmp_path / "run").glob("task*"))


def several(tmp_path, **options):
    write_chats(tmp_path / "chats.jsonl")
    write_notes(tmp_path / "notes.csv")
    chats = {key: value for key, value in CHATS.items() if value is not None}
    return tiny_recipe(tmp_path, data=[{**chats, "weight": 0.5}, NOTES], **options)


def test_several_tasks_are_learnt_packed(tmp_path, capsys):
    recipe = several(tmp_path, train={"pack_tokens": 64, "steps": 12})
    made = run_recipe(recipe, tmp_path / "run")
    assert list(made) == ["task", "data/chats", "data/notes", "base", "sparse", "super_adapter"]
    assert made["super_adapter"].manifest.parents == {
        "sparse": made["sparse"].sha256,
        "task": made["task"].sha256,
        "data/chats": made["data/chats"].sha256,
        "data/notes": made["data/notes"].sha256,
    }
    said = capsys.readouterr().err
    assert "task chats: " in said
    assert "sequences of up to 64 tokens" in said
    assert [section["name"] for section in made["super_adapter"].manifest.details["recipe"]["data"]] == [
        "chats",
        "notes",
    ]
    again = tiny_recipe(tmp_path, data=[NOTES], train={"pack_tokens": 64, "steps": 12})
    run_recipe(again, tmp_path / "other")
    assert losses(tmp_path / "other") != losses(tmp_path / "run")
    # Each of them is a task to be evaluated.
    evaluator = Evaluator("notes", split="test", include_path=tmp_path / "run" / "data" / "notes", bits_per_byte=True)
    base = tmp_path / "run" / "base"
    found = evaluator.on_torch(load_model(base), load_tokenizer(base), precision="fp32")()
    assert found.loss is not None
    assert found.bits_per_byte is not None


def test_a_found_sub_network_is_tuned_on_the_same_tasks(tmp_path):
    from shearling.elastic.subnet import describe_subnet, open_subnet
    from shearling.strict_json import write_document
    from train.super_adapter.tune import tune_subnet

    made = run_recipe(several(tmp_path, train={"steps": 4}), tmp_path / "run")
    adapter = made["super_adapter"]
    from shearling.elastic.search_space import read_search_space

    space = read_search_space(adapter.path / "search_space.json")
    document = tmp_path / "run" / "smallest.json"
    write_document(
        document,
        describe_subnet(
            adapter, space.minimal(), subnet_id="smallest", location=tmp_path / "run", metrics=None, provenance=None
        ),
    )
    tuned = tune_subnet(open_subnet(document), steps=2, learning_rate=1e-3)
    parents = open_artefact(tuned.with_suffix(""), kind="super_adapter").manifest.parents
    assert parents == adapter.manifest.parents


def test_rows_that_are_cut_are_counted_for_each_task(tmp_path):
    write_notes(tmp_path / "notes.csv")
    recipe = tiny_recipe(
        tmp_path,
        task={"max_length": 26},
        data=[{**HEADLINES, "name": "others", "max_length": 25}],
        train={"steps": 2},
    )
    made = run_recipe(recipe, tmp_path / "run")
    details = made["super_adapter"].manifest.details
    assert details["row_account"] != details["row_accounts"]["data/others"]
    assert sum(details["row_accounts"]["data/others"].values()) > 0


VALIDATED = {"steps": 150, "eval_steps": 5, "patience": 2, "learning_rate": 0.15, "save_steps": 50}


def test_training_stops_where_the_validation_loss_falls_no_more(tmp_path, capsys):
    recipe = tiny_recipe(tmp_path, train=VALIDATED)
    made = run_recipe(recipe, tmp_path / "run")
    validated = [(entry["step"], entry["eval_loss"]) for entry in log_of(tmp_path / "run") if "eval_loss" in entry]
    assert [step for step, _ in validated] == [5 * (place + 1) for place in range(len(validated))]
    best = min(loss for _, loss in validated)
    assert validated[-1][0] < 150
    assert [loss for _, loss in validated].index(best) == len(validated) - 3
    step = validated[-3][0]
    assert f"kept the adapter of step {step}" in capsys.readouterr().err
    # It is the adapter of that step.
    shorter = tiny_recipe(tmp_path, train={**VALIDATED, "steps": step})
    run_recipe(shorter, tmp_path / "shorter")
    names = [tmp_path / name / "super_adapter" / "adapter_model.safetensors" for name in ("run", "shorter")]
    assert names[0].read_bytes() == names[1].read_bytes()
    assert sorted(made["super_adapter"].manifest.files) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "search_space.json",
        LOG_FILE,
    ]


def test_validation_alone_changes_nothing(tmp_path):
    for name, train in (("without", {}), ("with", {"eval_steps": 2})):
        run_recipe(tiny_recipe(tmp_path, train=train), tmp_path / name)
    names = [tmp_path / name / "super_adapter" / "adapter_model.safetensors" for name in ("without", "with")]
    assert names[0].read_bytes() == names[1].read_bytes()
    assert len([entry for entry in log_of(tmp_path / "with") if "eval_loss" in entry]) == 3


def draw_until(last: int) -> Callable[[RankSampler], dict[str, int]]:
    """What replaces `RankSampler.draw`: interrupted behind so many micro-batches."""
    draw = RankSampler.draw

    def draw_or_stop(self: RankSampler) -> dict[str, int]:
        if self.drawn == last:
            raise KeyboardInterrupt
        return draw(self)

    return draw_or_stop


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def adapters(directory: Path, *runs: str) -> list[bytes]:
    return [(directory / run / "super_adapter" / "adapter_model.safetensors").read_bytes() for run in runs]


@pytest.mark.parametrize("save_steps", [50, 1])
@pytest.mark.parametrize("after", ["the best", "the end"])
def test_a_stopped_training_that_was_interrupted_ends_the_same(after, save_steps, tmp_path, monkeypatch):
    run_recipe(tiny_recipe(tmp_path, train=VALIDATED), tmp_path / "straight")
    recipe = tiny_recipe(tmp_path, train={**VALIDATED, "save_steps": save_steps})
    with monkeypatch.context() as patched:
        if after == "the end":
            patched.setattr(super_adapter, "_write", interrupt)
        else:
            patched.setattr(RankSampler, "draw", draw_until(12))
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, tmp_path / "run")
    # A run may be moved before it goes on.
    (tmp_path / "run").rename(tmp_path / "moved")
    run_recipe(recipe, tmp_path / "moved")
    straight, moved = adapters(tmp_path, "straight", "moved")
    assert straight == moved


def test_checkpoints_between_validations_are_kept(tmp_path, monkeypatch):
    train = {"steps": 12, "eval_steps": 8, "patience": 3, "save_steps": 2}
    recipe = tiny_recipe(tmp_path, train=train)
    run_recipe(recipe, tmp_path / "straight")
    with monkeypatch.context() as patched:
        patched.setattr(RankSampler, "draw", draw_until(7))
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, tmp_path / "run")
    newest = newest_checkpoint(tmp_path / "run" / ".super_adapter.partial" / CHECKPOINTS)
    assert newest is not None
    assert newest.name == "checkpoint-6"
    run_recipe(recipe, tmp_path / "run")
    straight, continued = adapters(tmp_path, "straight", "run")
    assert straight == continued


@pytest.mark.parametrize("last", [None, 8, 10])
def test_with_patience_the_last_steps_count(last, tmp_path, monkeypatch, capsys):
    """They lie behind the last multiple of `eval_steps`."""
    recipe = tiny_recipe(tmp_path, train={"steps": 10, "eval_steps": 6, "patience": 3})
    if last is not None:
        with monkeypatch.context() as patched:
            patched.setattr(RankSampler, "draw", draw_until(last))
            if last == 10:
                patched.setattr(super_adapter, "_write", interrupt)
            with pytest.raises(KeyboardInterrupt):
                run_recipe(recipe, tmp_path / "run")
    run_recipe(recipe, tmp_path / "run")
    validated = [entry["step"] for entry in log_of(tmp_path / "run") if "eval_loss" in entry]
    assert validated == [6, 10]
    assert "kept the adapter of step 10, the least of 2 validation losses" in capsys.readouterr().err
    run_recipe(tiny_recipe(tmp_path, train={"steps": 10}), tmp_path / "plain")
    kept, plain = adapters(tmp_path, "run", "plain")
    assert kept == plain


def test_patience_without_a_validation_before_the_end_is_refused(tmp_path):
    recipe = tiny_recipe(tmp_path, train={"steps": 10, "eval_steps": 11, "patience": 3})
    with pytest.raises(RecipeInvalid, match="11 steps to the first validation loss, and the training has 10") as caught:
        run_recipe(recipe, tmp_path / "run")
    assert "train.eval_steps" in str(caught.value)
    assert caught.value.remedy
    assert not (tmp_path / "run").exists()


def test_a_classifier_is_validated_and_says_which_rows_it_cuts(tmp_path, capsys):
    from tests.support.tiny_models import save_tiny_encoder

    save_tiny_encoder(tmp_path / "source")
    train = {"eval_steps": 3, "group_by_length": True}
    path = write_tiny_recipe(tmp_path, masked=False, sparse=False, train=train, task={"max_length": 8})
    text = path.read_text().replace('path = "source"', 'path = "source"\nhead = "classifier"')
    text = text.replace('["q_proj", "k_proj", "v_proj"]', '["query"]').replace('["up_proj"]', '["intermediate.dense"]')
    path.write_text(text.replace('["down_proj"]', '["key"]'))
    made = run_recipe(read_recipe(path), tmp_path / "run")
    assert len([entry for entry in log_of(tmp_path / "run") if "eval_loss" in entry]) == 2
    rows = made["task"].manifest.details["rows"]["train"]
    assert made["super_adapter"].manifest.details["row_account"] == {"cut_prompt": rows}
    assert f"train.jsonl at 8 tokens: of {rows} rows {rows} cut" in capsys.readouterr().err


def test_losses_are_reported_to_tensorboard(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    recipe = tiny_recipe(tmp_path, train={"report_to": ["tensorboard"], "eval_steps": 3})
    made = run_recipe(recipe, tmp_path / "run")
    (events,) = (tmp_path / "run" / "tensorboard" / "super_adapter").glob("events.out.tfevents.*")
    assert b"train/loss" in events.read_bytes()
    assert b"eval/loss" in events.read_bytes()
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ
    assert not [name for name in made["super_adapter"].manifest.files if "event" in name]


def test_each_training_is_a_run_of_its_own_at_weights_and_biases(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_recipe(tiny_recipe(tmp_path, adaptation={"steps": 2}, train={"report_to": ["wandb"]}), tmp_path / "run")
    assert wandb.run is None
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 2


def test_a_missing_reporter_is_said_before_the_work(tmp_path, monkeypatch):
    from train.super_adapter import reporting

    monkeypatch.setattr(reporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PackageMissing, match="wandb is not installed") as caught:
        run_recipe(tiny_recipe(tmp_path, train={"report_to": ["wandb"]}), tmp_path / "run")
    assert "'.[reports]'" in caught.value.remedy
    assert not (tmp_path / "run").exists()


def test_packing_a_model_that_cannot_keep_rows_apart_is_refused(tmp_path):
    recipe = tiny_recipe(tmp_path, family="bloom", train={"pack_tokens": 64})
    with pytest.raises(ModelUnsupported, match="cannot share a sequence"):
        run_recipe(recipe, tmp_path / "run")


def test_mistakes_in_more_data_name_its_section(tmp_path):
    write_notes(tmp_path / "notes.csv")
    with pytest.raises(RecipeInvalid, match="row 1: 'body' is undefined") as caught:
        run_recipe(tiny_recipe(tmp_path, data=[{**NOTES, "text": "{{ body }}"}]), tmp_path / "run")
    assert caught.value.where == "data.notes.text"


def test_a_text_too_short_to_learn_is_an_error(tmp_path):
    (tmp_path / "notes.csv").write_text("note\n" + "".join(f'"{chr(97 + number)}"\n' for number in range(26)))
    shares = {"train": 0.4, "validation": 0.3, "test": 0.3}
    recipe = tiny_recipe(tmp_path, data=[{**NOTES, "train_on_end": False, "split": shares}], train={"steps": 2})
    with pytest.raises(RecipeInvalid, match="every train row is cut"):
        run_recipe(recipe, tmp_path / "run")
