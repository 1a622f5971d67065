"""Every token that ends a text is honoured, from the source of a model to what was exported of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from export.request import ExportRequest
from export.stage import export_frozen
from serve.runtimes.deployment import find_deployment
from shearling.evaluation.generation import Stopping, generate_greedily
from shearling.model.checkpoint import load_tokenizer, save_model
from shearling.model.end_tokens import end_token_ids, end_tokens_of, read_end_tokens
from shearling.strict_json import read_json
from shearling.target import Target
from tests.support.json_files import edit_json
from tests.support.tiny_models import EOS, FAMILIES, save_tiny, tiny_tokenizer
from train.base.artefact import import_base


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (({"eos_token_id": 2},), (2,)),
        (({"eos_token_id": [106, 1]}, {"eos_token_id": 1}), (1, 106)),
        (({"text_config": {"eos_token_id": 9}},), (9,)),
        (({"eos_token_id": None}, {}), ()),
        (({"eos_token_id": [True, "2", 3.0]},), ()),
    ],
)
def test_numbers_and_lists_are_read(sources, expected):
    assert end_token_ids(*sources) == expected


@pytest.mark.parametrize("ends", [{7}, {7, 9}])
def test_an_answer_ends_at_the_first_of_them(ends):
    says = iter([5, 9, 6, 7, 8, 8, 8])

    def step(input_ids, attention_mask, position_ids, fresh):
        return torch.nn.functional.one_hot(torch.tensor([next(says)]), 10).float()

    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: " ".join(map(str, ids)))
    (text,) = generate_greedily(step, [[1, 2]], Stopping(6, ()), tokenizer=tokenizer, ends=ends)
    assert text == ("5" if 9 in ends else "5 9 6")


def test_a_tokenizer_without_a_directory_knows_its_own_end():
    tokenizer = tiny_tokenizer()
    assert end_tokens_of(tokenizer) == {tokenizer.eos_token_id}


def test_a_list_reaches_every_export(tmp_path):
    source = save_tiny("llama", tmp_path / "source")
    edit_json(source / "generation_config.json", eos_token_id=[2, 106])
    base = import_base(source, tmp_path / "base", model_id="tiny/turns")
    assert end_tokens_of(load_tokenizer(base.path)) == {2, 106}
    request = ExportRequest(output=tmp_path / "export", formats=("hf", "openvino", "onnx"), verify="off")
    exported = export_frozen(base.path, request)
    for name in ("model", "openvino", "onnx"):
        assert read_json(exported.path / name / "generation_config.json")["eos_token_id"] == [2, 106]
        assert end_tokens_of(load_tokenizer(exported.path / name)) == {2, 106}
    assert find_deployment(Target(exported.path)).end_ids == (2, 106)


@pytest.mark.parametrize("configured", [7, None])
def test_the_end_of_the_tokenizer_reaches_every_export(configured, tmp_path):
    """Training appends it, so that a runtime that ran past it would show what the model was never taught to say."""
    source = save_tiny("llama", tmp_path / "source")
    for name in ("generation_config.json", "config.json"):
        edit_json(source / name, eos_token_id=configured)
    own = tiny_tokenizer().eos_token_id
    expected = (own,) if configured is None else tuple(sorted((own, configured)))
    assert find_deployment(Target(source)).end_ids == expected
    base = import_base(source, tmp_path / "base", model_id="tiny/turns")
    request = ExportRequest(output=tmp_path / "export", formats=("hf", "openvino", "onnx"), verify="off")
    exported = export_frozen(base.path, request)
    for name in ("model", "openvino", "onnx"):
        assert end_token_ids(read_json(exported.path / name / "generation_config.json")) == expected
        assert find_deployment(Target(exported.path / name)).end_ids == expected


def test_an_end_that_config_json_alone_names_reaches_runtimes_that_read_the_other(tmp_path):
    source = save_tiny("llama", tmp_path / "source")
    own = tiny_tokenizer().eos_token_id
    edit_json(source / "config.json", eos_token_id=own)
    edit_json(source / "generation_config.json", eos_token_id=7)
    base = import_base(source, tmp_path / "base", model_id="tiny/turns")
    request = ExportRequest(output=tmp_path / "export", formats=("hf", "openvino", "onnx"), verify="off")
    exported = export_frozen(base.path, request)
    for name in ("model", "openvino", "onnx"):
        assert end_token_ids(read_json(exported.path / name / "generation_config.json")) == tuple(sorted((own, 7)))


@pytest.mark.parametrize("named", [EOS, {"content": EOS, "special": True}])
@pytest.mark.parametrize("written", ["tokenizer.json", "tokenizer_config.json"])
def test_the_end_of_a_tokenizer_is_read_where_its_version_wrote_it(named, written, tmp_path):
    own = tiny_tokenizer().eos_token_id
    tiny_tokenizer().save_pretrained(str(tmp_path))
    edit_json(tmp_path / "tokenizer_config.json", eos_token=named)
    assert "added_tokens_decoder" not in read_json(tmp_path / "tokenizer_config.json")
    if written == "tokenizer_config.json":
        edit_json(tmp_path / "tokenizer_config.json", added_tokens_decoder={str(own): {"content": EOS}})
        (tmp_path / "tokenizer.json").unlink()
    assert read_end_tokens([tmp_path / "absent", tmp_path]) == (own,)
    edit_json(tmp_path / "tokenizer_config.json", eos_token="nobody's")
    assert read_end_tokens([tmp_path]) == ()


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("tokenizer.json", {"added_tokens": None}),
        ("tokenizer.json", {"added_tokens": [EOS, {"content": EOS}, {"content": EOS, "id": "2"}]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"two": {"content": EOS}, "2": EOS}}),
        ("tokenizer_config.json", {"eos_token": 2}),
    ],
)
def test_what_names_no_token_is_passed_over(file, changes, tmp_path):
    tiny_tokenizer().save_pretrained(str(tmp_path))
    edit_json(tmp_path / file, **changes)
    assert read_end_tokens([tmp_path]) == ()


def test_a_model_that_is_saved_whole_names_the_end_of_its_tokenizer(tmp_path):
    model = FAMILIES["llama"]()
    model.config.eos_token_id = model.generation_config.eos_token_id = 7
    save_model(model, tiny_tokenizer(), tmp_path)
    assert set(read_json(tmp_path / "generation_config.json")["eos_token_id"]) == {7, tiny_tokenizer().eos_token_id}
