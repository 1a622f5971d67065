"""Importing pretrained models: the artefact computes what its source computed, and hostile sources are refused."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.gguf_writer import write_gguf
from shearling.artefact import open_artefact
from shearling.errors import (
    ArtefactCorrupt,
    ArtefactMissing,
    CheckpointUnsafe,
    ModelUnsupported,
    NonFiniteWeights,
    OutputExists,
)
from shearling.kernel.openvino_core import openvino_core
from shearling.model.checkpoint import load_model, load_tokenizer, save_model
from shearling.model.gguf_header import read_header
from shearling.model.gguf_tokenizer import rebuild_tokenizer
from shearling.model.skeleton import open_skeleton
from shearling.strict_json import read_json
from tests.support.json_files import edit_json
from tests.support.own_memory import in_own_memory
from tests.support.tiny_models import (
    BEYOND,
    FAMILIES,
    PAD,
    VOCABULARY,
    longer_tokenizer,
    save_tiny,
    tiny_tokenizer,
)
from tests.support.tiny_runs import tiny_recipe
from train.base.artefact import import_base
from train.preflight import find_model
from train.stage import run_recipe

TEXT = "The fox won 2024 times;  isn't it? été 你好 🎉\n"


@pytest.mark.parametrize("family", FAMILIES)
def test_directory_import_keeps_the_function(family, tmp_path):
    source = save_tiny(family, tmp_path / "source")
    base = import_base(source, tmp_path / "base", model_id="tiny/model")
    ids = tiny_tokenizer()(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(in_own_memory(load_model(base.path))(ids).logits, FAMILIES[family]()(ids).logits)
    assert load_tokenizer(base.path)(TEXT).input_ids == ids[0].tolist()
    assert base.manifest.details["num_layers"] in (2, 3)
    assert base.manifest.details["tie_word_embeddings"] == (
        family in ("llama_tied_gqa", "qwen2", "gemma", "gemma2", "gemma3", "bloom")
    )


@pytest.mark.parametrize("family", ["llama", "llama_tied_gqa"])
def test_gguf_import_keeps_the_function_and_the_tokens(family, tmp_path):
    source = write_gguf(tmp_path / "tiny.gguf", FAMILIES[family](), tiny_tokenizer())
    base = import_base(source, tmp_path / "base", model_id="tiny/gguf")
    ids = tiny_tokenizer()(TEXT, return_tensors="pt").input_ids
    tokenizer = load_tokenizer(base.path)
    assert tokenizer(TEXT).input_ids == ids[0].tolist()
    assert tokenizer.decode(ids[0]) == TEXT
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|pad|>")
    message = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(message, tokenize=False) == tiny_tokenizer().apply_chat_template(
        message, tokenize=False
    )
    with torch.no_grad():
        torch.testing.assert_close(load_model(base.path)(ids).logits, FAMILIES[family]()(ids).logits, rtol=0, atol=1e-5)
    assert base.manifest.details["source"]["format"] == "gguf"


def test_gguf_tokenizer_converts_to_openvino(tmp_path):
    from openvino_tokenizers import convert_tokenizer

    source = write_gguf(tmp_path / "tiny.gguf", FAMILIES["llama_tied_gqa"](), tiny_tokenizer())
    tokenizer = rebuild_tokenizer(read_header(source))
    encode, decode = (
        openvino_core().compile_model(part, "CPU") for part in convert_tokenizer(tokenizer, with_detokenizer=True)
    )
    ids = encode([TEXT])["input_ids"]
    assert ids[0].tolist() == tokenizer(TEXT).input_ids
    assert decode([ids])["string_output"][0] == TEXT


@pytest.mark.parametrize(("pre", "text", "expected"), [("qwen2", "won't 123", 3), ("llama-bpe", "won't 123", 1)])
def test_digits_are_split_as_the_pre_tokenizer_says(pre, text, expected, tmp_path):
    source = write_gguf(tmp_path / "tiny.gguf", FAMILIES["llama_tied_gqa"](), tiny_tokenizer(), pre=pre)
    splitter = rebuild_tokenizer(read_header(source)).backend_tokenizer.pre_tokenizer
    pieces = [piece for piece, _ in splitter.pre_tokenize_str(text)]
    assert sum(any(char.isdigit() for char in piece) for piece in pieces) == expected
    assert pieces[:2] == ["won", "'t"]


def test_a_file_that_does_not_name_its_pre_tokenizer_is_split_as_gpt2_which_is_said(tmp_path, capsys):
    source = write_gguf(tmp_path / "tiny.gguf", FAMILIES["llama_tied_gqa"](), tiny_tokenizer(), pre="gpt-2")
    named = read_header(source)
    expected = rebuild_tokenizer(named)(TEXT).input_ids
    assert capsys.readouterr().err == ""
    unnamed = replace(named, fields={key: named.fields[key] for key in named.fields if key != "tokenizer.ggml.pre"})
    assert rebuild_tokenizer(unnamed)(TEXT).input_ids == expected
    said = capsys.readouterr().err
    assert said.count("tokenizer.ggml.pre") == 1
    assert "split as GPT-2's" in said


@pytest.mark.parametrize(
    ("options", "message"), [({"kind": "bert"}, "byte-level BPE"), ({"pre": "unheard-of"}, "unheard-of")]
)
def test_gguf_tokenizers_that_cannot_be_rebuilt_are_refused(options, message, tmp_path):
    source = write_gguf(tmp_path / "tiny.gguf", FAMILIES["llama_tied_gqa"](), tiny_tokenizer(), **options)
    with pytest.raises(ModelUnsupported, match=message):
        import_base(source, tmp_path / "base", model_id="x")
    assert not (tmp_path / "base").exists()


def test_truncated_gguf_is_refused(tmp_path):
    source = write_gguf(tmp_path / "tiny.gguf", FAMILIES["llama_tied_gqa"](), tiny_tokenizer())
    for size_bytes in (6, 1000, source.stat().st_size - 500):
        damaged = tmp_path / f"{size_bytes}.gguf"
        damaged.write_bytes(source.read_bytes()[:size_bytes])
        with pytest.raises(ArtefactCorrupt):
            import_base(damaged, tmp_path / "base", model_id="x")


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("generation_config.json", {"temperature": 0.9, "top_p": 0.6}),
        ("generation_config.json", {"length_penalty": 2.0, "early_stopping": True, "output_scores": True}),
        ("config.json", {"pad_token_id": -1}),
    ],
)
def test_generation_settings_that_have_no_effect_are_dropped_and_named(file, settings, tmp_path, capsys):
    source = save_tiny("llama", tmp_path / "source")
    if file == "config.json":
        # Where a model has no such file, transformers takes what config.json says.
        (source / "generation_config.json").unlink()
    edit_json(source / file, **settings)
    base = import_base(source, tmp_path / "base", model_id="x")
    kept = read_json(base.path / "generation_config.json")
    assert not kept.keys() & settings.keys()
    assert kept["eos_token_id"] == tiny_tokenizer().eos_token_id
    said = capsys.readouterr().err
    assert all(name in said for name in settings)


@pytest.mark.parametrize(
    ("configured", "token"),
    [(None, PAD), (0, None), (None, None), (-1, PAD), (None, BEYOND)],
    ids=["the tokenizer's", "the configuration's", "the end of text", "one that is none", "one without an embedding"],
)
def test_a_decoder_that_classifies_is_read_at_the_last_token_before_the_padding(configured, token, tmp_path):
    source = tmp_path / "source"
    save_model(FAMILIES["llama"](), longer_tokenizer(), source)
    edit_json(source / "config.json", pad_token_id=configured)
    edit_json(source / "tokenizer_config.json", pad_token=token)
    base = import_base(source, tmp_path / "base", model_id="x", classes=("no", "yes"))
    model, tokenizer = load_model(base.path), load_tokenizer(base.path)
    assert model.config.pad_token_id == tokenizer.pad_token_id < VOCABULARY
    texts = ["rain", "Scientists discover that most weights were never needed"]
    with torch.no_grad():
        together = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        alone = torch.cat([model(**tokenizer([text], return_tensors="pt")).logits for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_generation_settings_of_sampling_are_kept(tmp_path, capsys):
    source = save_tiny("llama", tmp_path / "source")
    edit_json(source / "generation_config.json", do_sample=True, temperature=0.7, top_p=0.8)
    kept = read_json(import_base(source, tmp_path / "base", model_id="x").path / "generation_config.json")
    assert (kept["do_sample"], kept["temperature"], kept["top_p"]) == (True, 0.7, 0.8)
    assert capsys.readouterr().err == ""


def test_generation_settings_that_nothing_loads_are_refused(tmp_path):
    source = save_tiny("llama", tmp_path / "source")
    edit_json(source / "generation_config.json", num_return_sequences=3)
    with pytest.raises(ArtefactCorrupt, match="num_return_sequences"):
        import_base(source, tmp_path / "base", model_id="x")


def test_keys_that_name_code_are_removed_for_native_architectures(tmp_path):
    source = save_tiny("mistral", tmp_path / "source")
    edit_json(
        source / "config.json", auto_map={"AutoModel": "modeling.Evil"}, _attn_implementation_internal="someone/kernel"
    )
    edit_json(source / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization.Evil", None]})
    (source / "modeling.py").write_text("raise SystemExit('this must never run')")
    base = import_base(source, tmp_path / "base", model_id="x")
    stored = " ".join((base.path / name).read_text() for name in ("config.json", "tokenizer_config.json"))
    assert "auto_map" not in stored
    assert "_attn_implementation_internal" not in stored
    assert not (base.path / "modeling.py").exists()
    assert base.manifest.details["source"]["removed_keys"] == [
        "config.json:auto_map",
        "config.json:_attn_implementation_internal",
        "tokenizer_config.json:auto_map",
    ]


def test_models_that_need_their_own_code_are_refused(tmp_path):
    source = save_tiny("llama", tmp_path / "source")
    edit_json(
        source / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Mine"}, architectures=["MineForCausalLM"]
    )
    with pytest.raises(CheckpointUnsafe, match="MineForCausalLM"):
        import_base(source, tmp_path / "base", model_id="x")


def test_nonfinite_source_is_refused_and_nothing_stays(tmp_path):
    model = FAMILIES["llama"]()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.inf
    model.save_pretrained(str(tmp_path / "source"))
    tiny_tokenizer().save_pretrained(str(tmp_path / "source"))
    with pytest.raises(NonFiniteWeights) as caught:
        import_base(tmp_path / "source", tmp_path / "base", model_id="x")
    assert caught.value.where == "model.layers.1.mlp.up_proj.weight"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_bfloat16_is_kept_and_existing_output_is_not_replaced(tmp_path):
    source = save_tiny("llama", tmp_path / "source")
    base = import_base(source, tmp_path / "base", model_id="x", dtype="bfloat16")
    assert load_model(base.path, dtype="bfloat16").lm_head.weight.dtype is torch.bfloat16
    with pytest.raises(OutputExists):
        import_base(source, tmp_path / "base", model_id="x")
    assert open_artefact(base.path, kind="base").sha256 == base.sha256


KILLED = """
import os, signal, sys
from pathlib import Path
import train.base.artefact
train.base.artefact.open_skeleton = lambda directory: os.kill(os.getpid(), signal.SIGKILL)
train.base.artefact.import_base(Path(sys.argv[1]), Path(sys.argv[2]), model_id="x")
"""


def test_nothing_of_a_killed_import_stays(tmp_path):
    source, base = save_tiny("llama", tmp_path / "source"), tmp_path / "run" / "base"
    done = subprocess.run([sys.executable, "-c", KILLED, source, base], check=False)
    assert done.returncode == -signal.SIGKILL
    assert any((base.parent / ".base.partial").rglob("*.safetensors"))
    made = import_base(source, base, model_id="x")
    assert [path.name for path in base.parent.iterdir()] == ["base"]
    assert all("/" not in name for name in made.manifest.files)


def test_missing_sources_say_so(tmp_path):
    with pytest.raises(ArtefactMissing):
        import_base(tmp_path / "nowhere", tmp_path / "base", model_id="x")
    source = save_tiny("llama", tmp_path / "source")
    shutil.rmtree(tmp_path / "base", ignore_errors=True)
    (source / "config.json").unlink()
    with pytest.raises(ArtefactMissing, match=r"config\.json"):
        import_base(source, tmp_path / "base", model_id="x")


def rewrite(source, change):
    """Change the tensors of a checkpoint."""
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("extra", ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"])
def test_what_is_superfluous_is_left_behind_and_nothing_is_loaded_as_a_whole(extra, tmp_path, monkeypatch):
    source = save_tiny("llama_tied_gqa", tmp_path / "source")
    plain = import_base(source, tmp_path / "plain", model_id="x")
    rewrite(source, lambda found: found.update({extra: found["model.embed_tokens.weight"].clone()}))
    monkeypatch.setattr("train.base.artefact.load_model", lambda *_: pytest.fail("loaded as a whole"))
    base = import_base(source, tmp_path / "base", model_id="x")
    assert base.manifest.files == plain.manifest.files


def test_a_head_that_differs_from_the_embedding_it_is_tied_to_is_not_dropped_in_silence(tmp_path):
    source = save_tiny("llama_tied_gqa", tmp_path / "source")
    rewrite(source, lambda found: found.update({"lm_head.weight": found["model.embed_tokens.weight"] + 1}))
    assert open_skeleton(source) is None


@pytest.mark.parametrize("change", ["missing", "superfluous", "other shape"])
def test_tensors_that_are_not_those_of_the_model_are_refused(change, tmp_path):
    source = save_tiny("llama", tmp_path / "source")

    def spoil(found):
        norm = found.pop("model.norm.weight")
        if change == "superfluous":
            found |= {"model.norm.weight": norm, "model.norms.weight": norm.clone()}
        elif change == "other shape":
            found["model.norm.weight"] = torch.cat([norm, norm])

    rewrite(source, spoil)
    assert open_skeleton(source) is None
    with pytest.raises(ArtefactCorrupt):
        import_base(source, tmp_path / "base", model_id="x")


def test_a_directory_of_links_is_refused_before_anything_is_made(tmp_path):
    """As the cache of the hub holds models."""
    recipe = tiny_recipe(tmp_path)
    blobs = (tmp_path / "source").rename(tmp_path / "blobs")
    (tmp_path / "source").mkdir()
    for file in blobs.iterdir():
        (tmp_path / "source" / file.name).symlink_to(file)
    with pytest.raises(CheckpointUnsafe, match="a link") as caught:
        find_model(recipe.model)
    assert f"cp -rL {tmp_path / 'source'}" in caught.value.remedy
    with pytest.raises(CheckpointUnsafe):
        run_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
