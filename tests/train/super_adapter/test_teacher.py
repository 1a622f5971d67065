"""A dense teacher: its loss against autograd, and what its training keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import TrainingArguments

from shearling.artefact import open_artefact
from shearling.elastic.subnet import open_subnet
from shearling.errors import ArtefactMismatch, ArtefactMissing, RecipeInvalid, UsageError
from shearling.model.checkpoint import load_model, load_tokenizer
from shearling.recipe.training import MOST_TAUGHT_POSITIONS, TeacherSection, TrainSection
from tests.support.tiny_models import FAMILIES, VOCABULARY, save_tiny
from tests.support.tiny_runs import tiny_network, tiny_recipe
from tests.support.tiny_subnets import run_with_best
from train.stage import run_recipe
from train.super_adapter.choice_sampler import RankSampler
from train.super_adapter.taught_loss import Teacher, _thin_out, taught_loss
from train.super_adapter.teacher import check_teacher
from train.super_adapter.tokenised_rows import IGNORED_LABEL
from train.super_adapter.trainer import NlsTrainer, build_trainer, training_arguments
from train.super_adapter.tune import tune_subnet

ANSWERS_ALONE = {"train_on_prompt": False}


def batch(*, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, VOCABULARY, (3, 16), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 11:] = 0
    labels = torch.full_like(input_ids, IGNORED_LABEL)
    for row, end in enumerate((16, 11, 16)):
        labels[row, end - 2 : end] = input_ids[row, end - 2 : end]
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama", torch.float32), ("llama", torch.bfloat16), ("gemma2", torch.float32)],
    ids=["plain head", "teacher in bf16", "capped head"],
)
def test_the_loss_and_its_gradient_are_those_of_the_definition(family: str, dtype: torch.dtype) -> None:
    student, teacher = FAMILIES[family](), FAMILIES[family]()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    teacher.to(dtype)
    rows, section = batch(), TeacherSection(prompt=0.7, answer=0.3, hidden=0.2)
    loss = taught_loss(student, rows, Teacher(teacher, section), items=5, teaching=0.5)
    loss.backward()
    found = {
        name: parameter.grad.clone() for name, parameter in student.named_parameters() if parameter.grad is not None
    }

    student.zero_grad()
    inputs = {name: rows[name] for name in ("input_ids", "attention_mask")}
    out = student(**inputs, output_hidden_states=True)
    with torch.no_grad():
        wanted = teacher(**inputs, output_hidden_states=True)
    labelled = rows["labels"][:, 1:] != IGNORED_LABEL
    text = rows["attention_mask"][:, 1:].bool() & ~labelled
    divergence = F.kl_div(
        out.logits[:, :-1].log_softmax(-1),
        wanted.logits[:, :-1].float().log_softmax(-1),
        log_target=True,
        reduction="none",
    ).sum(-1)
    seen, aim = labelled | text, wanted.hidden_states[-1].float()
    distance = (out.hidden_states[-1] - aim)[:, :-1][seen].square().mean()
    expected_labels = (
        F.cross_entropy(out.logits[:, :-1][labelled], rows["labels"][:, 1:][labelled], reduction="sum") / 5
    )
    expected = 0.7 * divergence[text].mean() + 0.3 * divergence[labelled].mean()
    expected = expected + 0.2 * distance / aim[:, :-1][seen].square().mean()
    expected = expected_labels + 0.5 * expected
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    expected.backward()
    for name, parameter in student.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_a_teacher_may_have_more_logits_for_the_same_tokens() -> None:
    """Sizes of one family fill their embeddings up to different numbers."""
    student, teacher, wider = (FAMILIES["llama"]() for _ in range(3))
    wider.resize_token_embeddings(VOCABULARY + 8)
    section, rows = TeacherSection(prompt=0.7, answer=0.3), batch()
    losses = [taught_loss(student, rows, Teacher(model, section)) for model in (teacher, wider)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    losses[1].backward()
    assert student.get_output_embeddings().weight.grad.isfinite().all()


def test_a_long_text_is_compared_at_even_distances() -> None:
    positions = torch.ones(8, 1000, dtype=torch.bool)
    positions[2] = False
    kept = _thin_out(positions, MOST_TAUGHT_POSITIONS)
    assert int(kept.sum()) == MOST_TAUGHT_POSITIONS
    assert not (kept & ~positions).any()
    assert (kept.sum(dim=1)[[0, 1, 3, 4, 5, 6, 7]] - MOST_TAUGHT_POSITIONS / 7).abs().max() <= 1
    assert _thin_out(positions, 10**6).equal(positions)


def divergence_from_base(run: Path) -> float:
    """Mean KL(base || super-network) over the prompts of the validation rows, in nats."""
    from shearling.elastic.super_network import load_super_network
    from shearling.evaluation.task import read_rows
    from shearling.run import Run

    base, tokenizer = load_model(Run(run).base), load_tokenizer(Run(run).base)
    network = load_super_network(Run(run))
    values = []
    for row in read_rows(Run(run).task, "validation"):
        input_ids = torch.tensor([tokenizer(row.prompt)["input_ids"]])
        with torch.no_grad():
            student, teacher = (model(input_ids=input_ids).logits.log_softmax(-1) for model in (network.model, base))
        values.append(F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1).mean().item())
    return sum(values) / len(values)


def test_what_the_base_says_of_the_prompt_is_kept(tmp_path: Path) -> None:
    found = []
    for name, section in (("alone", {}), ("taught", {"teacher": {"prompt": 3.0}})):
        recipe = tiny_recipe(tmp_path / name, task=ANSWERS_ALONE, train={"steps": 30, "learning_rate": 0.01, **section})
        run_recipe(recipe, tmp_path / name / "run")
        found.append(divergence_from_base(tmp_path / name / "run"))
    assert found[1] < 0.5 * found[0]


def taught_training(path: Path, **train: int) -> NlsTrainer:
    """Of three batches of two rows."""
    section = TrainSection.model_validate({"epochs": 1, "batch_size": 2, "teacher": {}, **train})
    network = tiny_network(masked=False)
    return build_trainer(
        network,
        [{"input_ids": list(range(3, 19)), "labels": [IGNORED_LABEL] * 12 + [4] * 4}] * 6,
        arguments=training_arguments(section, seed=0, precision="fp32", output=path),
        sampler=RankSampler(network.space, seed=0),
        section=section,
        teacher=Teacher(FAMILIES["llama"]().eval(), TeacherSection()),
        callbacks=[],
    )


def test_the_teacher_stands_where_the_student_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingArguments, "device", torch.device("meta"))
    trainer = taught_training(tmp_path)
    assert trainer.teacher is not None
    for model in (trainer.network.model, trainer.teacher.model):
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


# The device "meta" above shows that the teacher is moved; that a step then runs, a GPU alone shows.
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_taught_training_runs_on_a_gpu(tmp_path: Path) -> None:
    trainer = taught_training(tmp_path)
    trainer.train()
    assert trainer.args.device.type == "cuda"
    assert trainer.state.global_step == 3


def test_what_is_taught_weighs_as_much_in_the_short_last_update_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_and_no_labels(*arguments: Any, teaching: float, **options: Any) -> torch.Tensor:
        return teaching + 0 * taught_loss(*arguments, **options)

    monkeypatch.setattr("train.super_adapter.trainer.taught_loss", one_and_no_labels)
    trainer, losses = taught_training(tmp_path, gradient_accumulation=2), []
    step = trainer.training_step

    def noted(*arguments: Any, **options: Any) -> torch.Tensor:
        losses.append(step(*arguments, **options))
        return losses[-1]

    monkeypatch.setattr(trainer, "training_step", noted)
    trainer.train()
    assert [loss.item() for loss in losses] == [0.5, 0.5, 1.0]


def test_the_teacher_is_part_of_what_was_trained(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, task=ANSWERS_ALONE, train={"steps": 2, "teacher": {"path": "source"}})
    run_recipe(recipe, tmp_path / "run")
    details = open_artefact(tmp_path / "run" / "super_adapter", kind="super_adapter").manifest.details
    assert len(details["recipe"]["teacher"]) == 64


def test_a_sub_network_is_tuned_by_the_teacher_that_its_adapter_had_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = {"path": "source", "prompt": 1.0}
    run = run_with_best(tmp_path, task=ANSWERS_ALONE, train={"steps": 2, "teacher": teacher})
    # The manifest keeps the name alone, and another model has it where the command is run.
    save_tiny("mistral", tmp_path / "elsewhere" / "source")
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = open_subnet(run.path / "best.json")
    with pytest.raises(UsageError, match="source") as caught:
        tune_subnet(found, steps=2, learning_rate=1e-3)
    assert "--teacher" in str(caught.value)
    for other in (Path("source"), run.base):
        with pytest.raises(ArtefactMismatch, match="not the one that taught the adapter"):
            tune_subnet(found, steps=2, learning_rate=1e-3, teacher=other)
    with pytest.raises(ArtefactMissing):
        tune_subnet(found, steps=2, learning_rate=1e-3, teacher=Path("nowhere"))
    document = tune_subnet(found, steps=2, learning_rate=1e-3, teacher=tmp_path / "source")
    taught = open_artefact(run.super_adapter, kind="super_adapter").manifest.details["recipe"]["teacher"]
    assert open_subnet(document).adapter.manifest.details["teacher"] == taught


def test_a_teacher_is_not_given_to_what_had_none_of_its_own(tmp_path: Path) -> None:
    run = run_with_best(tmp_path)
    with pytest.raises(UsageError, match="no teacher"):
        tune_subnet(open_subnet(run.path / "best.json"), steps=2, learning_rate=1e-3, teacher=tmp_path / "source")


def test_a_teacher_that_reads_other_tokens_is_refused(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "teacher")
    file = tmp_path / "teacher" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    file.write_text(json.dumps(tokenizer))
    recipe = tiny_recipe(tmp_path, task=ANSWERS_ALONE, train={"steps": 2, "teacher": {"path": "teacher"}})
    with pytest.raises(RecipeInvalid, match="another vocabulary"):
        run_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "sparse").exists()


def test_a_teacher_that_is_not_there_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, task=ANSWERS_ALONE, train={"steps": 2, "teacher": {"path": "nowhere"}})
    with pytest.raises(ArtefactMissing, match="no such teacher"):
        run_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_hidden_states_of_another_width_are_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from shearling.model.checkpoint import save_model
    from tests.support.tiny_models import tiny_tokenizer

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    (tmp_path / "narrow").mkdir()
    save_model(LlamaForCausalLM(config), tiny_tokenizer(), tmp_path / "narrow")
    recipe = tiny_recipe(tmp_path, train={"steps": 2, "teacher": {"path": "narrow", "hidden": 1.0}})
    with pytest.raises(RecipeInvalid, match="hidden states of 32"):
        run_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "sparse").exists()
    check_teacher(TeacherSection(path=tmp_path / "narrow"), tmp_path / "source")
