"""GPT-2 imported as GPTBigCode: the same function, with matrices that can be pruned."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from shearling.errors import ArtefactCorrupt, ModelUnsupported
from shearling.model.checkpoint import load_model
from shearling.model.layers import find_layers
from shearling.model.skeleton import open_skeleton
from shearling.recipe.model import ModelSection
from tests.support.gguf_files import write_any_gguf
from tests.support.tiny_models import VOCABULARY, build_tiny, tiny_tokenizer
from train.base.artefact import import_base
from train.preflight import check_prunable, find_model

# transformers' module of GPTBigCode, when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

TOKENS = torch.randint(3, VOCABULARY, (2, 17), generator=torch.Generator().manual_seed(1))
LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def tiny(model_class=GPT2LMHeadModel, **changes):
    """Attention as the configuration says: GPT-2's fused one leaves out what it has no argument for."""
    shape = {"vocab_size": VOCABULARY, "n_positions": 128, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_inner": 72}
    tokens = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    config = GPT2Config(**{**shape, **tokens, "initializer_range": 0.1, **changes})
    model = build_tiny(model_class, config)
    model.set_attn_implementation("eager")
    return model


def directory_of(model, path, **options):
    model.save_pretrained(str(path), **options)
    tiny_tokenizer().save_pretrained(str(path))
    return path


def as_published(path):
    """Names without the body's, and the tables of older versions beside them."""
    file = path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    for layer in range(3):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 128, 128).tril()
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, file, metadata={"format": "pt"})
    return path


def check_same(imported, original, *, atol=1e-5):
    with torch.no_grad():
        torch.testing.assert_close(imported(TOKENS).logits, original(TOKENS).logits, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
        {"scale_attn_weights": False, "activation_function": "relu", "tie_word_embeddings": False},
        {"n_inner": None},
    ],
)
def test_the_imported_model_computes_the_same(changes, tmp_path):
    original = tiny(**changes)
    base = import_base(directory_of(original, tmp_path / "source"), tmp_path / "base", model_id="tiny/gpt2")
    imported = load_model(base.path)
    assert imported.config.model_type == base.manifest.details["model_type"] == "gpt_bigcode"
    check_same(imported, original)
    transformer = find_layers(imported)
    assert (transformer.layers_path, transformer.linear_names) == ("transformer.h", LINEARS)
    assert open_skeleton(base.path) is not None
    assert base.manifest.details["parameters"] == sum(parameter.numel() for parameter in original.parameters())


def test_a_published_checkpoint_has_other_names_and_tables_that_nobody_reads(tmp_path):
    original = tiny()
    source = as_published(directory_of(original, tmp_path / "source"))
    found = find_model(ModelSection(path=source, model_id="tiny/gpt2"))
    check_prunable(found)
    assert (found.model_type, found.parameters) == ("gpt_bigcode", original.num_parameters())
    check_same(load_model(import_base(source, tmp_path / "base", model_id="tiny/gpt2").path), original)


def test_shards_and_half_precision_are_kept(tmp_path):
    original = tiny().to(torch.bfloat16)
    source = directory_of(original, tmp_path / "source", max_shard_size="100KB")
    assert len(list(source.glob("*.safetensors"))) > 1
    base = import_base(source, tmp_path / "base", model_id="tiny/gpt2")
    assert base.manifest.details["torch_dtype"] == "bfloat16"
    check_same(load_model(base.path), original.float())


def test_the_result_is_an_ordinary_checkpoint_of_transformers(tmp_path):
    original = tiny()
    base = import_base(directory_of(original, tmp_path / "source"), tmp_path / "base", model_id="tiny/gpt2")
    check_same(transformers.AutoModelForCausalLM.from_pretrained(str(base.path)), original)


def test_a_classifier_keeps_its_body(tmp_path):
    original = tiny(GPT2ForSequenceClassification, num_labels=3)
    source = directory_of(original, tmp_path / "source")
    base = import_base(source, tmp_path / "base", model_id="tiny/gpt2", classes=("no", "yes"))
    model = load_model(base.path)
    assert type(model).__name__ == "GPTBigCodeForSequenceClassification"
    assert model.score.out_features == 2
    with torch.no_grad():
        body, expected = model.transformer(TOKENS)[0], original.transformer(TOKENS)[0]
    torch.testing.assert_close(body, expected, rtol=0, atol=1e-5)


def test_gguf(tmp_path):
    original = tiny()
    original.config.intermediate_size, original.config.num_key_value_heads = 72, 4
    # llama.cpp's converter stores the matrices as [out, in].
    names = {"attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
    turned = {
        f"blk.{layer}.{there}.weight": original.get_submodule(f"transformer.h.{layer}.{here}").weight.detach().T.numpy()
        for layer in range(3)
        for here, there in names.items()
    }
    epsilon = {"gpt2.attention.layer_norm_epsilon": 1e-5}
    source = write_any_gguf(tmp_path / "model.gguf", "gpt2", original, tiny_tokenizer(), fields=epsilon, tensors=turned)
    found = find_model(ModelSection(path=source, model_id="tiny/gpt2"))
    check_prunable(found)
    assert found.model_type == "gpt_bigcode"
    check_same(load_model(import_base(source, tmp_path / "base", model_id="tiny/gpt2").path), original, atol=1e-4)


def edit(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return directory


def test_what_has_no_equal_is_refused(tmp_path):
    source = edit(directory_of(tiny(), tmp_path / "source"), add_cross_attention=True)
    with pytest.raises(ModelUnsupported, match="encoder"):
        find_model(ModelSection(path=source, model_id="tiny/gpt2"))


def test_heads_that_do_not_fit_the_weights(tmp_path):
    source = edit(directory_of(tiny(), tmp_path / "source"), n_head=5)
    with pytest.raises(ArtefactCorrupt, match="not those of 5 heads"):
        import_base(source, tmp_path / "base", model_id="tiny/gpt2")
