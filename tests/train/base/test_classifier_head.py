"""A new head: what it replaces, what belongs to it, and what an encoder must bring."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification

from shearling.errors import ArtefactCorrupt
from shearling.model.checkpoint import load_model, save_model
from shearling.model.head import head_parameters
from tests.support.json_files import edit_json
from tests.support.tiny_models import ENCODER_SHAPE, build_tiny, save_tiny_encoder, tiny_tokenizer
from train.base.artefact import import_base

CLASSES = ("no", "yes")
POOLERS = {"bert": "bert.pooler.dense", "albert": "albert.pooler"}


def with_new_head(source, destination, *, classes=CLASSES, seed=3):
    return load_model(import_base(source, destination, model_id="x", classes=classes, seed=seed).path)


def equal(found, expected):
    """Whether two models, or parts of them, have the same parameters."""
    one, other = dict(found.named_parameters()), dict(expected.named_parameters())
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("classes", [("no", "yes"), ("no", "yes", "perhaps", "never")])
@pytest.mark.parametrize("before", [1, 2, 3])
def test_the_head_of_another_task_is_replaced(before, classes, tmp_path):
    config = BertConfig(**ENCODER_SHAPE, num_labels=before, problem_type="multi_label_classification")
    fine_tuned = build_tiny(BertForSequenceClassification, config)
    save_model(fine_tuned, tiny_tokenizer(), tmp_path / "source")
    model = with_new_head(tmp_path / "source", tmp_path / "base", classes=classes)
    assert model.config.id2label == dict(enumerate(classes))
    assert model.config.problem_type is None, "pipelines would add up no probabilities"
    assert model.classifier.weight.shape == (len(classes), ENCODER_SHAPE["hidden_size"])
    assert equal(model.bert, fine_tuned.bert)
    save_model(fine_tuned.bert, tiny_tokenizer(), tmp_path / "alone")
    alone = with_new_head(tmp_path / "alone", tmp_path / "plain", classes=classes)
    assert equal(model, alone), "what was there decides nothing"


def test_an_encoder_of_other_sizes_than_its_configuration_is_refused(tmp_path):
    source = save_tiny_encoder(tmp_path / "source")
    edit_json(source / "config.json", intermediate_size=80)
    with pytest.raises(ArtefactCorrupt, match=r"bert\.encoder\.layer\.0\..* has another shape") as caught:
        with_new_head(source, tmp_path / "base")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize("family", POOLERS)
def test_a_weight_of_the_encoder_that_is_missing_is_no_new_one(family, tmp_path):
    source = save_tiny_encoder(tmp_path / "source", family)
    tensors = load_file(source / "model.safetensors")
    left_out = next(name for name in sorted(tensors) if name.endswith("query.weight"))
    del tensors[left_out]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtefactCorrupt, match=r"the encoder's weight .*query\.weight is missing"):
        with_new_head(source, tmp_path / "base")


@pytest.mark.parametrize("family", POOLERS)
def test_a_pooler_that_was_not_pretrained_is_drawn_with_the_head(family, tmp_path, capsys):
    source, pooler = save_tiny_encoder(tmp_path / "source", family), POOLERS[family]
    assert not any("pooler" in name for name in load_file(source / "model.safetensors"))
    model = with_new_head(source, tmp_path / "base")
    assert "the checkpoint has no pooler" in capsys.readouterr().err
    assert {name.rpartition(".")[0] for name in head_parameters(model)} == {pooler, "classifier"}
    assert equal(model, with_new_head(source, tmp_path / "again"))
    other = with_new_head(source, tmp_path / "other", seed=4)
    assert not torch.equal(model.get_submodule(pooler).weight, other.get_submodule(pooler).weight)


def test_a_pooler_that_the_checkpoint_has_stays(tmp_path, capsys):
    """Also that of a classifier which this project has given one to."""
    model = with_new_head(save_tiny_encoder(tmp_path / "source", "bert"), tmp_path / "base")
    capsys.readouterr()
    again = with_new_head(tmp_path / "base", tmp_path / "again", seed=4)
    assert "pooler" not in capsys.readouterr().err
    assert head_parameters(again).keys() == {"classifier.weight", "classifier.bias"}
    assert equal(again.bert, model.bert)
