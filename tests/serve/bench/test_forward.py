"""What a forward is timed with, on a classifier of one layer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import openvino
import pytest
from openvino import opset13

from serve.bench.forward import _feed, _load, measure_forwards
from serve.runtimes.deployment import find_deployment
from shearling.errors import ModelUnsupported, UsageError
from shearling.target import Target
from tests.support.json_files import edit_json

POSITIONS, VOCABULARY = 32, 400


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    ids = opset13.parameter([-1, -1], np.int64, "input_ids")
    ids.get_output_tensor(0).set_names({"input_ids"})
    embedding = opset13.constant(np.ones((VOCABULARY, 4), np.float32))
    mean = opset13.reduce_mean(opset13.gather(embedding, ids, 0), 1)
    openvino.save_model(openvino.Model([mean], [ids]), tmp_path / "openvino_model.xml")
    config = {"max_position_embeddings": POSITIONS, "vocab_size": VOCABULARY}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_no_more_tokens_than_the_model_knows_positions(classifier: Path) -> None:
    target = Target(classifier)
    assert measure_forwards([target], tokens=POSITIONS, blocks=2, threads=1)[0].speedup == 1.0
    with pytest.raises(UsageError, match="33 tokens exceed the context of 32"):
        measure_forwards([target], tokens=POSITIONS + 1, blocks=2, threads=1)


def test_tokens_are_of_the_vocabulary(classifier: Path) -> None:
    deployment = find_deployment(Target(classifier))
    request = _load(Target(classifier), deployment, threads=1)
    ids = _feed(request, 2000, vocabulary=VOCABULARY)["input_ids"]
    assert (ids.min(), ids.max()) == (0, VOCABULARY - 1)
    request.infer({"input_ids": ids})
    assert (request.get_output_tensor().data == 1).all()


def test_a_classifier_is_timed_and_continues_no_text(classifier: Path) -> None:
    edit_json(classifier / "config.json", architectures=["BertForSequenceClassification"])
    with pytest.raises(ModelUnsupported, match=r"a classifier, which continues no text.*serve forward"):
        find_deployment(Target(classifier))
    with pytest.raises(ModelUnsupported, match="a classifier, which continues no text"):
        find_deployment(Target(classifier / "openvino_model.xml"), visits=True)
    assert measure_forwards([Target(classifier)], tokens=POSITIONS, blocks=2, threads=1)[0].speedup == 1.0
