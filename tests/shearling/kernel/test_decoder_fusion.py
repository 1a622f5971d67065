"""Attention put into the layers of a packed decoder when it is loaded: it says what the file says, wherever it is run;
and what is not plain attention stays as it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai
import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GlmConfig,
    GlmForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from serve.runtimes.deployment import find_deployment
from serve.runtimes.runtime import Decoding, RunOptions, load_runtime
from shearling.errors import UsageError
from shearling.kernel.loading import packed_choice
from shearling.kernel.loading.attention_match import find_attentions
from shearling.kernel.loading.decoder_fusion import fuse_decoder
from shearling.kernel.loading.graph_match import NoMatch
from shearling.kernel.loading.ir_text import IrText
from shearling.kernel.loading.packed_choice import Timing
from shearling.kernel.loading.packed_model import load_ir
from shearling.kernel.openvino_core import openvino_core
from shearling.kernel.openvino_extension import core_for, load_packed, machine_operators, required_extensions
from shearling.target import parse_target
from tests.support.fused_pipelines import F32, compare_pipelines, load_without_writing
from tests.support.model_forms import EXACT
from tests.support.packed_decoders import SHAPE, seeded_decoder, write_packed
from tests.support.tiny_models import VOCABULARY

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it
FUSED = 2
"""All layers are one node but the last, which leaves nothing to another attention."""


@pytest.fixture(scope="module")
def xml(tmp_path_factory) -> Path:
    """Grouped queries, a tied embedding."""
    model = seeded_decoder(LlamaForCausalLM, LlamaConfig(**SHAPE, tie_word_embeddings=True))
    return write_packed(tmp_path_factory.mktemp("llama"), model)


def read_ir(xml: Path, **properties: str) -> tuple[ov.Model, str | None]:
    """The model as it is compiled, and why its attention is not in its layers."""
    loaded = load_packed(xml, properties=properties)
    return loaded.read(), loaded.attention


def compiled(xml: Path, *, fused: bool, cache: str = "f16") -> ov.InferRequest:
    # The file's own attention keeps its cache in f32.
    model, obstacle = read_ir(xml, **({"KV_CACHE_PRECISION": cache} if fused else {"ATTENTION_BACKEND": "SDPA"}))
    assert (obstacle is None) is fused
    properties = F32 if fused else {**F32, "KV_CACHE_PRECISION": "f32"}
    return core_for(xml).compile_model(model, "CPU", properties).create_infer_request()


def logits(request: ov.InferRequest, ids: np.ndarray, mask: np.ndarray, beam: list[int]) -> np.ndarray:
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
    feed = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "beam_idx": np.array(beam, np.int32)}
    request.infer(feed)
    return request.get_output_tensor(0).data.copy()


def test_a_layer_is_one_node(xml):
    model, obstacle = read_ir(xml)
    kinds = [node.get_type_name() for node in model.get_ops()]
    assert obstacle is None
    assert kinds.count("SparseDecoder") == FUSED
    assert not {"ScaledDotProductAttention", "SparseLayer", "Select", "LessEqual"} & set(kinds)


def mapped_weights(directory: Path) -> list[str]:
    """Weights files of this process that nobody finds any more."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if str(directory) in line and line.endswith(".bin (deleted)")]


@pytest.mark.parametrize("packed", ["always", "measured", "expanded", "never"])
@pytest.mark.parametrize("opened", ["as a pipeline", "as a model"])
def test_a_model_that_is_gone_keeps_no_file(xml, tmp_path, monkeypatch, packed, opened):
    monkeypatch.setattr(packed_choice, "LEAST_BYTES", 1)
    extensions = [str(library) for library in required_extensions(xml)]  # of this user's own cache
    monkeypatch.setenv("SHEARLING_CACHE", str(tmp_path / "cache"))
    for number in range(3):
        copy = Path(shutil.copytree(xml.parent, tmp_path / str(number))) / xml.name
        loaded = load_packed(copy, properties={"PACKED": packed, "extensions": extensions, **F32})
        if opened == "as a pipeline":
            running = loaded.open_pipeline("CPU")
        else:
            del loaded.properties["extensions"]
            running = core_for(copy).compile_model(loaded.read(), "CPU", loaded.properties).create_infer_request()
        del loaded
        shutil.rmtree(copy.parent)
        # What runs may read its file as long as it lives.
        if opened == "as a pipeline":
            running.generate("a", openvino_genai.GenerationConfig(max_new_tokens=2, ignore_eos=True))
        else:
            logits(running, np.array([[5]]), np.array([[1]]), [0])
        del running
    assert mapped_weights(tmp_path) == []


def test_a_head_that_is_slower_packed_leaves_attention_in_the_layers(xml, monkeypatch):
    monkeypatch.setattr(packed_choice, "LEAST_BYTES", 1)
    properties = {"PACKED": "measured", **F32}
    loaded = load_ir(xml, machine_operators(), properties=properties, measure=_head_is_slower_packed)
    assert loaded.attention is None
    kinds = [node.get_type_name() for node in loaded.read().get_ops()]
    assert kinds.count("SparseDecoder") == FUSED
    assert not {"SparseHead", "SparseEmbedding"} & set(kinds)
    apart = core_for(xml).compile_model(loaded.read(), "CPU", loaded.properties).create_infer_request()
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, 2))
    found, expected = (logits(request, ids, np.ones_like(ids), [0]) for request in (apart, compiled(xml, fused=True)))
    assert np.abs(found - expected).max() <= 4e-3 * np.abs(expected).max()


def test_zeros_that_are_put_back_leave_attention_in_the_layers(xml):
    loaded = load_packed(xml, properties={"PACKED": "expanded", **F32})
    assert loaded.attention is None
    nodes = [node for node in loaded.read().get_ops() if node.get_type_name() == "SparseDecoder"]
    assert [node.get_attributes()["expanded"] for node in nodes] == [True] * FUSED
    expanded = core_for(xml).compile_model(loaded.read(), "CPU", loaded.properties).create_infer_request()
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, 20))
    found, expected = (logits(item, ids, np.ones_like(ids), [0]) for item in (expanded, compiled(xml, fused=True)))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("cache", ["f16", "f32", "u8", "bf16"])
@pytest.mark.parametrize("batch", [1, 3])
def test_it_says_what_the_file_says(xml, batch, cache):
    requests = [compiled(xml, fused=True, cache=cache), compiled(xml, fused=False)]
    (state, *_) = requests[0].query_state()
    heads = SHAPE["hidden_size"] // SHAPE["num_attention_heads"]
    assert state.state.shape[3] == {"f16": 2 * heads, "f32": 4 * heads, "u8": heads + 2, "bf16": 2 * heads}[cache]
    # A cache in half precision or less, and bf16 products of many rows.
    assert_same(requests, batch, tolerance=4e-2 if cache in ("u8", "bf16") else 2e-2)


def assert_same(requests: list[ov.InferRequest], batch: int, *, tolerance: float) -> None:
    """In batches, whose texts are padded and reordered, too."""
    rng = np.random.default_rng(batch)
    mask = np.zeros((batch, 0), np.int64)
    for number, rows in enumerate([1, 1, 2] if batch == 1 else [37, 1, 1, 1]):
        mask = np.concatenate([mask, np.ones((batch, rows), np.int64)], axis=1)
        if batch > 1:
            mask[0, :11] = mask[2, :29] = 0
        ids = rng.integers(0, VOCABULARY, (batch, rows))
        beam = [*range(batch)] if number < 2 else [2, 0, 1][:batch]
        if batch == 1:
            beam = [0]
        else:
            mask = mask[beam]
        found, expected = (logits(request, ids, mask, beam) for request in requests)
        used = mask[:, -rows:, None] != 0
        assert np.abs((found - expected) * used).max() <= tolerance * np.abs(expected).max()


def call_of(function: Callable[[str], None], xml: Path) -> str:
    """The code of a process that imports what the function needs, and none of what is imported here."""
    return f"from {function.__module__} import {function.__name__} as called; called({str(xml)!r})"


def test_genai_says_the_same_through_it(xml):
    # Kernels in f32: those that round activations could choose another of two tokens that are nearly equal.
    done = subprocess.run(
        [sys.executable, "-c", call_of(compare_pipelines, xml)],
        env={**os.environ, "SHEARLING_KERNEL": "portable"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_serve_says_which_attention_it_uses(xml):
    prompt, work = "Area man wins award", Decoding(max_new_tokens=24)
    answers, attention, precision = [], [], []
    cache = "@KV_CACHE_PRECISION="
    ours, theirs = (
        ("", f"{cache}f32", f"{cache}bf16"),
        ("@ATTENTION_BACKEND=SDPA", "@ATTENTION_BACKEND=PA", f"{cache}u4"),
    )
    for suffix in (*ours, *theirs):
        runtime = load_runtime(find_deployment(parse_target(f"{xml.parent}{suffix}")), RunOptions(threads=1))
        answers.append(runtime.generate([runtime.encode(prompt, chat=False)], work).token_ids)
        attention.append(runtime.facts.settings.get("attention"))
        precision.append(runtime.facts.settings.get("KV_CACHE_PRECISION"))
        runtime.close()
    asked = [f"OpenVINO's: {name} asks for it" for name in (*("ATTENTION_BACKEND",) * 2, "KV_CACHE_PRECISION")]
    assert attention == [*("in the layers",) * 3, *asked]
    assert precision[:3] == ["f16", "f32", "bf16"]
    # Four bits of a number say something else.
    assert answers[:5] == [answers[0]] * 5


def test_nothing_is_written_when_it_is_loaded(xml, tmp_path):
    # A process that may not write a single byte to a file: the system ends it when it tries.
    done = subprocess.run(
        [sys.executable, "-B", "-c", call_of(load_without_writing, xml)],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["in", "the", "layers", "8"]


@pytest.mark.parametrize("mode", [0o755, 0o2750, 0o555])
def test_who_may_enter_the_model_may_enter_what_is_written(xml, tmp_path, mode):
    source = Path(shutil.copytree(xml.parent, tmp_path / "source"))
    source.chmod(mode)
    load_packed(source / xml.name, properties={}).write(tmp_path / "fused")
    assert (tmp_path / "fused").stat().st_mode & 0o7777 == mode & 0o777 | 0o700
    assert b"SparseDecoder" in (tmp_path / "fused" / xml.name).read_bytes()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"properties": {"PACKED": "never"}}, "PACKED=never asks for other layers"),
        ({"properties": {"PACKED": "expanded"}}, "PACKED=expanded asks for other layers"),
        ({"properties": {"KV_CACHE_PRECISION": "u8"}}, "KV_CACHE_PRECISION=u8 asks for another cache than f16"),
        ({"properties": {}, "obstacle": "texts are batched"}, "texts are batched"),
        ({"properties": {}, "device": "GPU"}, "GPU has no such operators"),
    ],
)
def test_what_is_written_with_attention_in_its_layers_is_changed_by_nothing(xml, tmp_path, asked, words):
    load_packed(xml, properties={}).write(tmp_path / "fused")
    written = tmp_path / "fused" / xml.name
    for same in ({}, {"PACKED": "always"}, {"KV_CACHE_PRECISION": "f16"}):
        assert load_packed(written, properties=same).attention is None
    with pytest.raises(UsageError, match=f"{words}: load the export") as caught:
        load_packed(written, **asked)
    assert caught.value.remedy is None


@pytest.mark.parametrize("fused", ["when it is loaded", "as it was written", "not at all"])
@pytest.mark.parametrize("mode", ["ACCURACY", ov.properties.hint.ExecutionMode.ACCURACY])
def test_accuracy_leaves_activations_in_f32(xml, tmp_path, fused, mode):
    """Products of packed integers round them otherwise, as OpenVINO's own do unless they are asked for accuracy."""
    f32 = {**F32, "KV_CACHE_PRECISION": "f32"}
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, 30))

    def read(file: Path, **more: object) -> np.ndarray:
        loaded = load_packed(file, properties={**f32, **more})
        assert loaded.choice.unpacked or (loaded.attention is None) is (fused != "not at all")
        properties = {name: value for name, value in loaded.properties.items() if name != "ATTENTION_BACKEND"}
        request = core_for(file).compile_model(loaded.read(), "CPU", properties).create_infer_request()
        return logits(request, ids, np.ones_like(ids), [0])

    expected = read(xml, PACKED="never")
    file, more = xml, {"ATTENTION_BACKEND": "SDPA"} if fused == "not at all" else {}
    if fused == "as it was written":
        load_packed(xml, properties=f32).write(tmp_path / "fused")
        file = tmp_path / "fused" / xml.name
    rounded, exact = read(file, **more), read(file, EXECUTION_MODE_HINT=mode, **more)
    assert np.abs(exact - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.abs(rounded - expected).max() > 3e-5 * np.abs(expected).max()


@pytest.mark.parametrize("hint", ["f16", ov.Type.f16])
def test_where_angles_would_be_rounded_attention_stays(xml, tmp_path, hint):
    """Nothing marks them as OpenVINO marks those of its own rotary operation, whatever this processor computes in."""
    properties = {"INFERENCE_PRECISION_HINT": hint}
    assert "rounds the angles of positions" in load_packed(xml, properties=properties).attention
    load_packed(xml, properties={}).write(tmp_path / "fused")
    with pytest.raises(UsageError, match="rounds the angles of positions"):
        load_packed(tmp_path / "fused" / xml.name, properties=properties)


def variants() -> dict[str, tuple]:
    plain = {**SHAPE, "tie_word_embeddings": False}
    return {
        "heads of 12": (LlamaForCausalLM, LlamaConfig(**{**plain, "hidden_size": 48}), "heads of 12"),
        "capped scores": (
            Gemma2ForCausalLM,
            Gemma2Config(**SHAPE, head_dim=32, attn_logit_softcapping=50.0, final_logit_softcapping=None),
            "scores of attention are capped",
        ),
    }


@pytest.mark.parametrize("variant", variants())
def test_what_is_not_plain_attention_stays(tmp_path, variant):
    model_class, config, reason = variants()[variant]
    xml = write_packed(tmp_path, seeded_decoder(model_class, config))
    text = IrText(xml.read_bytes())
    before = text.to_bytes()
    obstacle = fuse_decoder(text, core_for(xml).read_model(xml), config.to_dict())
    assert reason in obstacle
    assert text.to_bytes() == before
    assert load_packed(xml, properties={}).as_it_is


def _ask_for_output(xml: Path, layer: int, output: int) -> None:
    """Let an output of a packed layer be one of the model, too."""
    model = core_for(xml).read_model(xml)
    layers = [node for node in model.get_ordered_ops() if node.get_type_name() == "SparseLayer"]
    model.add_outputs([layers[layer].output(output)])
    save_changed(model, xml)


def save_changed(model: ov.Model, xml: Path) -> None:
    """Write a model that was read from a file in its place."""
    ov.save_model(model, xml.with_name("changed.xml"), compress_to_fp16=False)
    for suffix in (".xml", ".bin"):
        xml.with_name("changed").with_suffix(suffix).replace(xml.with_suffix(suffix))


@pytest.mark.parametrize(("layer", "output"), [(0, 0), (0, 2)])
def test_what_else_reads_a_layer_keeps_attention_out_of_it(tmp_path, layer, output):
    config = LlamaConfig(**SHAPE, tie_word_embeddings=True)
    xml = write_packed(tmp_path, seeded_decoder(LlamaForCausalLM, config))
    assert load_packed(xml, properties={}).attention is None
    _ask_for_output(xml, layer, output)
    loaded = load_packed(xml, properties=F32)
    assert loaded.attention == "something else reads a packed layer or its cache"
    core_for(xml).compile_model(loaded.read(), "CPU", F32).create_infer_request()


def _double_the_residual(xml: Path) -> None:
    """Let the second packed layer add twice what the first one leaves."""
    model = core_for(xml).read_model(xml)
    _, second, *_ = (node for node in model.get_ordered_ops() if node.get_type_name() == "SparseLayer")
    doubled = ov.opset13.multiply(second.input_value(1), np.float32(2))
    second.input(1).replace_source_output(doubled.output(0))
    save_changed(model, xml)


def test_a_residual_that_is_not_the_layer_before_keeps_attention_out_of_it(tmp_path):
    config = LlamaConfig(**SHAPE, tie_word_embeddings=True)
    xml = write_packed(tmp_path, seeded_decoder(LlamaForCausalLM, config))
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, 2))
    before = logits(compiled(xml, fused=False), ids, np.ones_like(ids), [0])
    _double_the_residual(xml)
    with pytest.raises(NoMatch, match="something lies between"):
        find_attentions(core_for(xml).read_model(xml), {})
    loaded = load_packed(xml, properties=F32)
    request = core_for(xml).compile_model(loaded.read(), "CPU", F32).create_infer_request()
    found, expected = (logits(item, ids, np.ones_like(ids), [0]) for item in (request, compiled(xml, fused=False)))
    assert np.array_equal(found, expected)
    assert not np.allclose(found, before, rtol=0, atol=1e-3 * np.abs(before).max())


def test_a_head_that_is_part_of_the_last_layer_keeps_attention_out_of_it(tmp_path):
    """As it is with an operation behind it, where nothing tells that it is a head."""
    config = Gemma3TextConfig(
        **SHAPE, head_dim=32, layer_types=GEMMA_LAYERS, final_logit_softcapping=30.0, tie_word_embeddings=False
    )
    model = seeded_decoder(Gemma3ForCausalLM, config)
    with torch.no_grad():
        model.lm_head.weight[:, ::2] = 0
    xml = write_packed(tmp_path, model)
    read = core_for(xml).read_model(xml)
    *_, last = (node for node in read.get_ordered_ops() if node.get_type_name() == "SparseLayer")
    assert last.get_output_size() == 2
    loaded = load_packed(xml, properties=F32)
    assert loaded.attention == "something else reads a packed layer or its cache"
    core_for(xml).compile_model(loaded.read(), "CPU", F32).create_infer_request()


@pytest.mark.parametrize(("written", "instead"), [("Greater", "GreaterEqual"), ("Greater", "Less")])
def test_masks_of_another_kind_stay(tmp_path, written, instead):
    """What looks like a window and is none: the comparison decides."""
    config = MistralConfig(**SHAPE, tie_word_embeddings=False, sliding_window=16)
    xml = write_packed(tmp_path, seeded_decoder(MistralForCausalLM, config))
    content = xml.read_text()
    assert content.count(f'type="{written}"') == 1
    xml.write_text(content.replace(f'type="{written}"', f'type="{instead}"'))
    text = IrText(xml.read_bytes())
    before = text.to_bytes()
    assert "the mask is not that of" in fuse_decoder(text, core_for(xml).read_model(xml), config.to_dict())
    assert text.to_bytes() == before


PART = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
GEMMA_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES = {
    "neighbours in a part of a head, gate and up in one": (GlmForCausalLM, GlmConfig(**SHAPE, head_dim=16)),
    "queries, keys and values in one": (Phi3ForCausalLM, Phi3Config(**SHAPE)),
    "a part of a head": (Phi3ForCausalLM, Phi3Config(**SHAPE, rope_parameters=PART)),
    "mistral": (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=None)),
    "biases": (Qwen2ForCausalLM, Qwen2Config(**SHAPE)),
    "norms of queries and keys": (Qwen3ForCausalLM, Qwen3Config(**SHAPE, head_dim=32)),
    "windows": (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=3)),
    "windows of some layers": (
        Qwen2ForCausalLM,
        Qwen2Config(**SHAPE, sliding_window=4, use_sliding_window=True, max_window_layers=1),
    ),
    "layers that are not turned": (SmolLM3ForCausalLM, SmolLM3Config(**SHAPE, no_rope_layers=[1, 0, 1])),
    "norms on both sides of every product, angles of two kinds": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(**SHAPE, head_dim=32, sliding_window=4, layer_types=GEMMA_LAYERS),
    ),
    "scaled angles": (
        LlamaForCausalLM,
        LlamaConfig(
            **SHAPE,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
    ),
}


ONE_HEAD = {
    "one head": (LlamaForCausalLM, LlamaConfig(**{**SHAPE, "num_key_value_heads": 1})),
    "one head, biases": (Qwen2ForCausalLM, Qwen2Config(**{**SHAPE, "num_key_value_heads": 1})),
    "one head, norms, windows": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **{**SHAPE, "num_key_value_heads": 1}, head_dim=32, sliding_window=4, layer_types=GEMMA_LAYERS
        ),
    ),
}
"""Of keys and values: OpenVINO reshapes it where it transposes several."""
FAMILIES |= ONE_HEAD


TURNED = {
    "neighbours in a part of a head, gate and up in one": ("8", "true"),
    "queries, keys and values in one": ("16", "false"),
    "a part of a head": ("8", "false"),
}
"""Attributes `rotary_size` and `interleaved` of its layers."""


def _model_of(tmp_path, family) -> ov.Model:
    xml = write_packed(tmp_path, seeded_decoder(*FAMILIES[family]))
    return core_for(xml).read_model(xml)


def _named(model: ov.Model, name: str):
    return next(node for node in model.get_ops() if node.get_friendly_name().endswith(f"layers.0.self_attn/{name}"))


def _put(node, port: int, value) -> None:
    old = node.input_value(port).get_node()
    if old.get_type_name().startswith("Convert"):
        node, port, old = old, 0, old.input_value(0).get_node()
    new = ov.op.Constant(np.array(value, old.data.dtype).reshape(list(old.shape)))
    node.input(port).replace_source_output(new.output(0))


NEIGHBOURS, PART_OF_HEAD = "neighbours in a part of a head, gate and up in one", "a part of a head"
STRANGE = {
    "another sign": (NEIGHBOURS, lambda m: _put(_named(m, "aten::neg/Multiply"), 1, 1)),
    "not every second number": (NEIGHBOURS, lambda m: _put(_named(m, "aten::slice/Slice_2"), 3, 1)),
    "even numbers in the place of odd ones": (NEIGHBOURS, lambda m: _put(_named(m, "aten::slice/Slice_3"), 1, 1)),
    "angles repeated as a whole": (NEIGHBOURS, lambda m: _put(_named(m, "aten::repeat_interleave/Tile"), 1, [1, 2])),
    "another part of the angles": (NEIGHBOURS, lambda m: _put(_named(m, "aten::slice/Slice_1"), 1, 1)),
    "angles of other halves": (NEIGHBOURS, lambda m: _uneven_halves(m)),
    "another rest of a head": (NEIGHBOURS, lambda m: _put(_named(m, "aten::slice/Slice_5"), 1, 7)),
    "halves in the other order": (PART_OF_HEAD, lambda m: _put(_named(m, "aten::slice/Slice_2"), 1, 3)),
    "another sign of a half": (PART_OF_HEAD, lambda m: _put(_named(m, "aten::neg/Multiply"), 1, 1)),
    "keys by other angles": (PART_OF_HEAD, lambda m: _swap_tables(m)),
}


def _uneven_halves(model: ov.Model) -> None:
    joined = next(node for node in model.get_ops() if node.get_friendly_name().endswith("rotary_emb/aten::cat/Concat"))
    joined.input(1).replace_source_output(ov.opset13.negative(joined.input_value(1)).output(0))


def _swap_tables(model: ov.Model) -> None:
    straight, crossed = _named(model, "aten::mul/Multiply_2"), _named(model, "aten::mul/Multiply_3")
    cosines, sines = straight.input_value(1), crossed.input_value(1)
    straight.input(1).replace_source_output(sines)
    crossed.input(1).replace_source_output(cosines)


@pytest.mark.parametrize("case", STRANGE)
def test_embeddings_that_turn_in_another_way_are_not_taken(tmp_path, case):
    family, change = STRANGE[case]
    model = _model_of(tmp_path, family)
    assert len(find_attentions(model, {})) == SHAPE["num_hidden_layers"]
    change(model)
    with pytest.raises(NoMatch):
        find_attentions(model, {})


def _head_is_slower_packed(operators, rows):
    return Timing(2.0 if operators[0].kind == "SparseHead" else 0.5, 1.0, None)


@pytest.mark.parametrize("packed", ["always", "measured"])
@pytest.mark.parametrize("family", FAMILIES)
def test_angles_are_not_rounded_in_bf16(tmp_path, monkeypatch, family, packed):
    """Nor where something else of the model computes in bf16, as a head that is not packed does."""
    if "BF16" not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        # Nothing is rounded to bf16 then, so that the test could not fail.
        pytest.skip("OpenVINO computes in f32 on this processor, whatever it is asked for")
    monkeypatch.setattr(packed_choice, "LEAST_BYTES", 1)
    xml = write_packed(tmp_path, seeded_decoder(*FAMILIES[family]))
    # Exactly, since a product of integers makes more of what bf16 rounds in front of it.
    asked = {"PACKED": packed, "INFERENCE_PRECISION_HINT": "bf16", **EXACT}
    loaded = load_ir(xml, machine_operators(), properties=asked, measure=_head_is_slower_packed)
    assert loaded.attention is None
    own_head = packed == "measured"
    assert own_head is not any(node.get_type_name() == "SparseHead" for node in loaded.read().get_ops())
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, 40))
    positions = 3001 + np.arange(ids.size)[None]
    # Of seven bits behind the first, as bf16 has: steps of 16 there.
    rounded = positions // 16 * 16

    def read(hint: str, positions: np.ndarray) -> np.ndarray:
        properties = {**F32, "INFERENCE_PRECISION_HINT": hint}
        request = core_for(xml).compile_model(loaded.read(), "CPU", properties).create_infer_request()
        names = {"attention_mask": np.ones_like(ids), "position_ids": positions, "beam_idx": np.zeros(1, np.int32)}
        request.infer({"input_ids": ids, **names})
        return request.get_output_tensor(0).data.copy()

    exact = read("f32", positions)
    found, wrong = (np.abs(other - exact).max() for other in (read("bf16", positions), read("f32", rounded)))
    assert found < 0.1 * wrong
    assert bool(found > 0) is own_head  # which OpenVINO multiplies in bf16, and nothing else


@pytest.mark.parametrize("family", FAMILIES)
def test_families(tmp_path, family):
    xml = write_packed(tmp_path, seeded_decoder(*FAMILIES[family]))
    if family in TURNED:
        text = IrText(xml.read_bytes())
        assert fuse_decoder(text, core_for(xml).read_model(xml), {}) is None
        layers = [text.data(layer) for layer in text.layers_of(["SparseDecoder"])]
        assert {(layer["rotary_size"], layer["interleaved"]) for layer in layers} == {TURNED[family]}
    requests = [compiled(xml, fused=True), compiled(xml, fused=False)]
    rng = np.random.default_rng(0)
    mask = np.zeros((1, 0), np.int64)
    for rows in (2, 1, 2, 1, 1):  # few rows are multiplied exactly
        mask = np.concatenate([mask, np.ones((1, rows), np.int64)], axis=1)
        ids = rng.integers(0, VOCABULARY, (1, rows))
        found, expected = (logits(request, ids, mask, [0]) for request in requests)
        assert np.abs(found - expected).max() <= 4e-3 * np.abs(expected).max()


@pytest.mark.parametrize("family", ONE_HEAD)
def test_batches_of_one_head_of_keys_and_values(tmp_path, family):
    xml = write_packed(tmp_path, seeded_decoder(*ONE_HEAD[family]))
    assert_same([compiled(xml, fused=True, cache="f32"), compiled(xml, fused=False)], 3, tolerance=2e-2)
