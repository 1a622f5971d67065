"""A format measured some layers at a time: every layer once, each part right, and the model whole again."""

import dataclasses

import pytest
import torch

from export.formats.export_format import ExportSubject, PlannedFormat
from export.formats.layer_windows import check_by_layers, layers_alone, renumbered
from export.verification.parity import fixed_blocks, torch_logits
from export.verification.parity_check import MergedReference
from shearling.model.layers import find_layers
from shearling.registry.export_formats import EXPORT_FORMATS
from tests.support.exported_files import stored_as
from tests.support.tiny_models import FAMILIES, VOCABULARY, tiny_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it, torch.export of its own tree functions


@pytest.fixture
def blocks():
    return fixed_blocks(tiny_tokenizer(), vocabulary=VOCABULARY)[-2:]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_part_is_a_model_of_its_layers_alone(family, blocks):
    model = FAMILIES[family]()
    whole, transformer = torch_logits(model, blocks), find_layers(model)
    with layers_alone(model, transformer, 1, 3):
        assert model.config.num_hidden_layers == 2
        assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1]
        part = torch_logits(model, blocks)
    assert any(abs(left - right).max() > 1e-3 for left, right in zip(part, whole, strict=True))
    again = torch_logits(model, blocks)
    assert all((left == right).all() for left, right in zip(again, whole, strict=True))
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2]


@pytest.mark.parametrize("name", ["openvino", "onnx"])
def test_every_layer_is_measured_and_a_wrong_one_is_seen(tmp_path, monkeypatch, name, blocks):
    model = FAMILIES["llama"]()
    subject = ExportSubject(model, tiny_tokenizer(), tmp_path, None, False, {}, None)
    reference = MergedReference(model, "language_model", blocks)
    entry = EXPORT_FORMATS.get(name)
    planned = PlannedFormat(entry, entry.load_for("language_model")(), stored_as("fp32"), name, parts=2)
    checks = check_by_layers(planned, subject, reference, tmp_path)
    named = {check.candidate.partition(", layers ")[2] for check in checks}
    assert named == {"0 to 1", "2 to 2"}
    assert not any(check.rejects for check in checks)
    assert list(tmp_path.iterdir()) == []
    write = type(planned.writer).write

    def wrong(writer, part, directory, storage):
        weight = part.model.model.layers[0].mlp.down_proj.weight
        changed = dataclasses.replace(part)
        with torch.no_grad():
            weight.mul_(1.5)
        result = write(writer, changed, directory, storage)
        with torch.no_grad():
            weight.div_(1.5)
        return result

    monkeypatch.setattr(type(planned.writer), "write", wrong)
    assert any(check.rejects for check in check_by_layers(planned, subject, reference, tmp_path))


def test_integers_get_the_paths_of_the_part():
    matrices = {"model.layers.0.up": 0, "model.layers.2.up": 2, "model.layers.3.up": 3, "lm_head": 9}
    assert renumbered(matrices, "model.layers", 2, 4) == {"model.layers.0.up": 2, "model.layers.1.up": 3, "lm_head": 9}
