"""Loading refuses, before anything is read, whatever could run code, lead outside, or is incomplete."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from shearling.errors import (
    ArtefactCorrupt,
    ArtefactMissing,
    CheckpointUnsafe,
    DocumentInvalid,
    ModelUnsupported,
    NonFiniteWeights,
)
from shearling.model.checkpoint import hash_config, hash_weights, load_model, load_tokenizer, save_model
from shearling.model.checkpoint_safety import CODE_KEYS, check_checkpoint
from tests.support.json_files import edit_json
from tests.support.own_memory import in_own_memory
from tests.support.tiny_models import FAMILIES, VOCABULARY, save_tiny, tiny_tokenizer

INDEX = "model.safetensors.index.json"


@pytest.fixture
def checkpoint(tmp_path):
    return save_tiny("llama_tied_gqa", tmp_path / "model")


@pytest.fixture
def sharded(tmp_path):
    FAMILIES["llama"]().save_pretrained(str(tmp_path / "model"), max_shard_size="100KB")
    tiny_tokenizer().save_pretrained(str(tmp_path / "model"))
    return tmp_path / "model"


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_and_digests(family, tmp_path):
    directory = save_tiny(family, tmp_path / "model")
    model, original = in_own_memory(load_model(directory)), FAMILIES[family]()
    ids = load_tokenizer(directory)("The quick fox", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(model(ids).logits, original(ids).logits)
    assert not model.training
    assert hash_weights(directory) == hash_weights(model) == hash_weights(original)


def test_a_model_is_saved_whatever_its_settings_of_generation(tmp_path):
    model = FAMILIES["llama"]()
    model.generation_config.temperature = 0.9
    save_model(model, tiny_tokenizer(), tmp_path)
    assert "temperature" not in json.loads((tmp_path / "generation_config.json").read_text())


def test_shards_have_the_digest_of_the_whole(sharded):
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert hash_weights(sharded) == hash_weights(FAMILIES["llama"]()) == hash_weights(load_model(sharded))


def test_digest_sees_one_bit(checkpoint):
    before, config = hash_weights(checkpoint), hash_config(checkpoint)
    model = load_model(checkpoint)
    with torch.no_grad():
        model.model.norm.weight[3] = torch.nextafter(model.model.norm.weight[3], torch.tensor(9.0))
    assert hash_weights(model) != before
    edit_json(checkpoint / "config.json", rms_norm_eps=1e-4)
    assert hash_config(checkpoint) != config


class Bomb:
    def __reduce__(self):
        return (os._exit, (99,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_pickles_are_never_opened(name, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointUnsafe, match="pickles"):
        load_model(checkpoint)


def test_a_pickle_beside_safetensors_is_ignored(checkpoint):
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    load_model(checkpoint)


@pytest.mark.parametrize("key", sorted(CODE_KEYS))
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_keys_that_name_code(key, file, checkpoint):
    edit_json(checkpoint / file, **{key: {"AutoModelForCausalLM": "modeling.Evil"}})
    (checkpoint / "modeling.py").write_text("import os; os._exit(99)")
    with pytest.raises(CheckpointUnsafe, match=key) as caught:
        load_model(checkpoint)
    assert caught.value.where.endswith(file)
    with pytest.raises(CheckpointUnsafe):
        load_tokenizer(checkpoint)


def test_nested_keys_that_name_code(checkpoint):
    edit_json(checkpoint / "config.json", text_config={"inner": [{"_attn_implementation_internal": "someone/kernel"}]})
    with pytest.raises(CheckpointUnsafe, match=r"text_config\.inner\._attn_implementation_internal"):
        check_checkpoint(checkpoint)


def test_adapter_directories_would_load_another_base(checkpoint):
    (checkpoint / "adapter_config.json").write_text('{"base_model_name_or_path": "/somewhere/else"}')
    with pytest.raises(CheckpointUnsafe, match="adapter"):
        load_model(checkpoint)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_links(name, checkpoint, tmp_path):
    (checkpoint / name).rename(tmp_path / name)
    (checkpoint / name).symlink_to(tmp_path / name)
    with pytest.raises(CheckpointUnsafe, match="link"):
        load_model(checkpoint)


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "evil.bin"])
def test_index_that_points_outside(shard, sharded):
    index = json.loads((sharded / INDEX).read_text())
    first = next(iter(index["weight_map"]))
    index["weight_map"][first] = shard
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointUnsafe):
        load_model(sharded)


def test_missing_shard(sharded):
    gone = sorted(sharded.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ArtefactMissing) as caught:
        load_model(sharded)
    assert caught.value.where == str(gone)


def test_index_and_shards_disagree(sharded):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.invented.weight"] = next(iter(index["weight_map"].values()))
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ArtefactCorrupt, match=r"model\.invented\.weight"):
        load_model(sharded)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_malformed_index(content, sharded):
    (sharded / INDEX).write_text(content)
    with pytest.raises(DocumentInvalid, match="weight_map"):
        load_model(sharded)


@pytest.mark.parametrize("kept_share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights(kept_share, checkpoint):
    file = checkpoint / "model.safetensors"
    raw = file.read_bytes()
    file.write_bytes(raw[: int(len(raw) * kept_share)])
    with pytest.raises(ArtefactCorrupt):
        load_model(checkpoint)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nonfinite_weights_are_named(value, checkpoint):
    file = checkpoint / "model.safetensors"
    state = load_file(file)
    state["model.layers.1.self_attn.k_proj.weight"][2, 5] = value
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(NonFiniteWeights, match="1 of") as caught:
        load_model(checkpoint)
    assert caught.value.where == "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize("change", ["drop", "add", "reshape"])
def test_weights_that_do_not_fit_the_configuration(change, checkpoint):
    file, name = checkpoint / "model.safetensors", "model.layers.0.mlp.up_proj.weight"
    state = load_file(file)
    if change == "drop":
        del state[name]
    elif change == "add":
        state["model.layers.0.mlp.extra.weight"] = torch.zeros(2, 2)
    else:
        state[name] = state[name][:-1].contiguous()
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ArtefactCorrupt):
        load_model(checkpoint)


@pytest.mark.parametrize(
    "change",
    [
        {"pad_token_id": VOCABULARY},
        {"num_attention_heads": 0},
        {"vocab_size": 0},
        {"dtype": "x"},
        {"rope_parameters": 3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_configuration_that_fits_no_model_is_corrupt(change, checkpoint):
    file = checkpoint / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ArtefactCorrupt, match="does not load"):
        load_model(checkpoint)


def test_unsupported_models(checkpoint):
    for change, message in (
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized"),
        ({"model_type": "t5"}, "t5"),
        ({"model_type": "never-heard-of"}, "never-heard-of"),
        ({"model_type": ["llama"]}, "llama"),
    ):
        original = (checkpoint / "config.json").read_text()
        edit_json(checkpoint / "config.json", **change)
        with pytest.raises(ModelUnsupported, match=message):
            load_model(checkpoint)
        (checkpoint / "config.json").write_text(original)


def test_missing_parts(checkpoint, tmp_path):
    with pytest.raises(ArtefactMissing):
        load_model(tmp_path / "nowhere")
    (checkpoint / "tokenizer_config.json").unlink()
    with pytest.raises(ArtefactMissing, match="tokenizer"):
        load_tokenizer(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ArtefactMissing, match="no weights"):
        load_model(checkpoint)
    (checkpoint / "config.json").unlink()
    with pytest.raises(ArtefactMissing):
        load_model(checkpoint)


def test_broken_tokenizer(checkpoint):
    (checkpoint / "tokenizer.json").write_text('{"model": 7}')
    with pytest.raises(ModelUnsupported, match="tokenizer"):
        load_tokenizer(checkpoint)
