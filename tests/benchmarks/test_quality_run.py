"""A cell of the benchmark of quality, carried out on a tiny model: pruned, trained, searched, measured, and shared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.quality import carry_out, general_text
from benchmarks.quality.arms import ARMS as ARMS_OF_THE_BENCHMARK
from benchmarks.quality.arms import Arm, parse_ratio
from benchmarks.quality.cell import Cell, CellDocument, cross, read_cells, unfinished
from benchmarks.quality.general_text import GeneralText
from benchmarks.quality.models import BenchmarkModel
from benchmarks.quality.report import REPORT_FILE, write_report
from shearling.model.checkpoint import save_model
from shearling.run import Run
from shearling.strict_json import read_json
from tests.support.quality_cells import CHOICES, headlines_task
from tests.support.tiny_models import CORPUS, save_tiny, save_tiny_encoder, tiny_tokenizer, wide_model
from train import stage

pytestmark = pytest.mark.slow

ARMS = (
    Arm("dense", "dense", sparsity=None, served=True),
    Arm("fixed", "fixed", sparsity={"method": "magnitude"}),
    Arm("elastic", "elastic", sparsity={"method": "magnitude"}, ranks="elastic"),
    Arm(
        "grid",
        "grid",
        sparsity={"method": "magnitude"},
        quantization={"calibration": {"samples": 4, "seq_len": 16}},
        ranks="elastic",
    ),
    Arm("adapted", "adapted", sparsity={"method": "magnitude"}, adapted=True),
)


def tiny_cells(directory: Path) -> dict[str, Cell]:
    save_model(wide_model(), tiny_tokenizer(), directory / "source")
    model = BenchmarkModel(
        name="tiny",
        title="tiny",
        section={"model_id": "tiny/llama", "path": str(directory / "source")},
        calibration={"samples": 4, "seq_len": 16},
        adapter={"r": 4, "lora_alpha": 8},
        groups={"qkv": ("q_proj", "k_proj", "v_proj"), "down": ("down_proj",)},
        ranks=(4, 2),
        train={"steps": 4, "batch_size": 4, "learning_rate": 0.01, "precision": "fp32"},
        search={"algorithm": "nsga2", "evaluations": 3, "population": 2, "precision": "fp32"},
    )
    task = headlines_task(directory, {"completion": " {{ 'yes' if label else 'no' }}"})
    return cross([model], [task], [0], [parse_ratio("0.5")], ARMS)


def test_cells_are_carried_out_once_and_share_what_is_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = GeneralText(CORPUS)
    monkeypatch.setattr(carry_out, "held_back_text", lambda: text)
    monkeypatch.setattr(general_text, "other_passages", lambda: CORPUS * 8)
    cells, output = tiny_cells(tmp_path), tmp_path / "out"
    elastic = cells["tiny-headlines-0-0.5-elastic"]
    fixed = cells["tiny-headlines-0-0.5-fixed"]
    assert carry_out.carry_out_all([fixed], output, keep=True) == {}

    sparse = output / "runs" / fixed.run_name / "sparse"
    pruned = read_json(sparse / "manifest.json")
    # What an interrupted training leaves is no part of the next cell.
    partial = sparse.with_name(".super_adapter.partial")
    partial.mkdir()
    (partial / "left_over").touch()
    assert unfinished(cells, output) == [cell for cell in cells.values() if cell != fixed]
    assert carry_out.carry_out_all(unfinished(cells, output), output, keep=True) == {}
    assert read_json(sparse / "manifest.json") == pruned
    assert not partial.exists()
    assert unfinished(cells, output) == []

    documents = {cell.arm: cell for cell in read_cells(output)}
    _check_figures(documents)
    assert documents["elastic"].prepare_s == documents["fixed"].prepare_s
    assert documents["elastic"].bits_per_byte == documents["fixed"].bits_per_byte != documents["dense"].bits_per_byte
    assert elastic.run_name == fixed.run_name
    _check_what_was_adapted(output / "runs" / cells["tiny-headlines-0-0.5-adapted"].run_name)


def test_an_adapted_model_is_made_once_for_all_ratios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carry_out, "held_back_text", lambda: GeneralText(CORPUS))
    cell = tiny_cells(tmp_path)["tiny-headlines-0-0.5-adapted"]
    cells = [replace(cell, ratio=parse_ratio(ratio)) for ratio in ("0.25", "0.5")]
    made: list[Path] = []
    original = stage.write_adapted
    monkeypatch.setattr(
        stage, "write_adapted", lambda *given, **named: [made.append(given[2]), original(*given, **named)]
    )
    apart, together = tmp_path / "apart", tmp_path / "together"
    for each in cells:
        assert carry_out.carry_out_all([each], apart, keep=False) == {}
    assert len(made) == 2
    assert carry_out.carry_out_all(cells, together, keep=True) == {}
    assert len(made) == 3
    assert list((apart / "runs").iterdir()) == []
    for alone, shared in zip(read_cells(apart), read_cells(together), strict=True):
        assert alone.ratio == shared.ratio
        assert [figures.answers for figures in alone.subnets] == [figures.answers for figures in shared.subnets]
        assert [figures.bits_per_byte for figures in alone.subnets] == [
            figures.bits_per_byte for figures in shared.subnets
        ]
    files = [together / "runs" / each.run_name / carry_out.ADAPTED_FILE for each in cells]
    adapting_s = {read_json(file)["seconds"] for file in files}
    assert len(adapting_s) == 1
    assert all(cell.prepare_s > adapting_s.copy().pop() > 0 for cell in read_cells(together)), "it counts for both"


def test_what_an_interrupted_pruning_leaves_goes_and_the_adapted_model_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carry_out, "held_back_text", lambda: GeneralText(CORPUS))
    cell, run = tiny_cells(tmp_path)["tiny-headlines-0-0.5-adapted"], Run(tmp_path / "run")
    carry_out.carry_out(cell, run)
    (run.path / carry_out.PREPARED_FILE).unlink()
    (run.sparse / "model.safetensors").write_bytes(b"half")
    monkeypatch.setattr(stage, "write_adapted", lambda *_, **__: pytest.fail("it was there"))
    assert carry_out.carry_out(cell, run).sparsity == pytest.approx(0.5, abs=0.01)


def _check_what_was_adapted(run: Path) -> None:
    """Of the adapted model half of every pruned matrix is left, and the adapted one is another than the pretrained."""
    from shearling.model.checkpoint import load_model

    pretrained, adapted, pruned = (load_model(run / name) for name in ("base", "adapted", "sparse"))
    name = "model.layers.0.self_attn.q_proj.weight"
    weights = [dict(model.named_parameters())[name] for model in (pretrained, adapted, pruned)]
    assert not weights[0].equal(weights[1])
    assert weights[2].count_nonzero() == weights[2].numel() // 2
    assert weights[2][weights[2] != 0].equal(weights[1][weights[2] != 0])


def _check_figures(documents: dict[str, CellDocument]) -> None:
    assert [figures.subnet for figures in documents["dense"].subnets] == ["largest", "openvino-int8", "openvino-int4"]
    trained, *served = documents["dense"].subnets
    for bits, tolerance in zip([figures.bits_per_byte for figures in served], (0.01, 0.05), strict=True):
        assert bits != trained.bits_per_byte, "rounded"
        assert bits == pytest.approx(trained.bits_per_byte, rel=tolerance)
    assert [figures.subnet for figures in documents["elastic"].subnets] == [
        "largest",
        "heuristic",
        "searched",
        "packed",
        "packed-int4",
    ]
    assert [figures.subnet for figures in documents["grid"].subnets][2:] == ["searched", "packed-int4"]
    # The integers were trained: what is served answers as what was searched, up to the head in int8.
    searched, packed = documents["grid"].subnets[2:]
    assert packed.bits_per_byte == pytest.approx(searched.bits_per_byte, rel=0.01)
    assert [figures.subnet for figures in documents["adapted"].subnets] == ["adapted", "frozen", "largest"]
    for arm, document in documents.items():
        assert document.sparsity == pytest.approx(0 if arm == "dense" else 0.5, abs=0.01)
        for figures in document.subnets:
            assert figures.n == len(figures.answers) == 14
            assert figures.accuracy == pytest.approx(figures.answers.count("1") / 14)
            assert figures.bits_per_byte is not None
            assert figures.bits_per_byte > 0
            assert (figures.bits_per_byte == document.bits_per_byte) == (figures.subnet == "frozen")
    predicted = documents["elastic"].subnets[2].predicted or {}
    # Of twelve validation rows two thirds choose, and the others predict.
    assert (predicted["n"], predicted["held_back"]["n"]) == (8, 4)


def tiny_encoder_cells(directory: Path) -> dict[str, Cell]:
    """As those of MiniLM: a new head, no language, and Wanda on the prompts."""
    model = BenchmarkModel(
        name="encoder",
        title="encoder",
        section={
            "model_id": "tiny/bert",
            "path": str(save_tiny_encoder(directory / "encoder")),
            "head": "classifier",
        },
        calibration={"samples": 4, "seq_len": 16},
        adapter={"r": 4, "lora_alpha": 8},
        groups={"attention": ("query", "key", "value"), "down": ("output.dense",)},
        ranks=(4, 2),
        train={"steps": 12, "batch_size": 4, "learning_rate": 0.01, "precision": "fp32"},
        search={"algorithm": "nsga2", "evaluations": 3, "population": 2, "precision": "fp32"},
    )
    task = headlines_task(directory, CHOICES)
    arms = [ARMS_OF_THE_BENCHMARK[name] for name in ("dense", "refit", "wanda-elastic", "searched", "adapted")]
    return cross([model], [task], [0], [parse_ratio("0.5")], arms)


def test_cells_of_a_classifier_are_carried_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carry_out, "held_back_text", lambda: GeneralText(CORPUS))
    cells, output = tiny_encoder_cells(tmp_path), tmp_path / "out"
    names = [f"encoder-headlines-0-{name}" for name in ("0-dense", "0.5-refit", "0.5-wanda-elastic")]
    assert list(cells) == names, "what needs a language model is left out"
    assert carry_out.carry_out_all(unfinished(cells, output), output, keep=False) == {}
    assert unfinished(cells, output) == []

    documents = {cell.arm: cell for cell in read_cells(output)}
    for arm, document in documents.items():
        assert document.bits_per_byte is None
        assert document.sparsity == pytest.approx(0 if arm == "dense" else 0.5, abs=0.01)
        for figures in document.subnets:
            assert figures.n == len(figures.answers) == 14
            assert figures.accuracy == pytest.approx(figures.answers.count("1") / 14)
            assert figures.bits_per_byte is None
    subnets = {arm: [figures.subnet for figures in document.subnets] for arm, document in documents.items()}
    assert subnets == {
        "dense": ["largest"],
        "refit": ["largest"],
        "wanda-elastic": ["largest", "heuristic", "searched"],
    }
    predicted = documents["wanda-elastic"].subnets[2].predicted or {}
    assert (predicted["n"], predicted["held_back"]["n"]) == (8, 4)
    write_report(output)
    assert "| 50 % | Wanda, elastic: searched | 1 |" in (output / REPORT_FILE).read_text(encoding="utf-8")


def test_a_run_without_a_known_beginning_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carry_out, "held_back_text", lambda: GeneralText(CORPUS))
    dense = tiny_cells(tmp_path)["tiny-headlines-0-0-dense"]
    run = Run(tmp_path / "run")
    run.path.mkdir()
    (run.path / "base").mkdir()
    (run.path / "base" / "half").write_text("written")
    assert carry_out.carry_out(dense, run).prepare_s > 0


def test_bits_per_byte_are_those_of_the_model_itself(tmp_path: Path) -> None:
    import math

    import torch

    from shearling.evaluation.evaluator import torch_scorer
    from shearling.model.checkpoint import load_model, load_tokenizer

    directory = save_tiny("llama", tmp_path)
    model, tokenizer = load_model(directory).eval(), load_tokenizer(directory)
    nats = 0.0
    for passage in CORPUS:
        tokens = torch.tensor([[tokenizer.eos_token_id, *tokenizer.encode(passage)]])
        with torch.inference_mode():
            scores = model(tokens).logits.double().log_softmax(-1)
        nats -= float(scores[0, :-1].gather(1, tokens[0, 1:, None]).sum())
    expected = nats / math.log(2) / sum(len(passage.encode()) for passage in CORPUS)
    assert general_text.bits_per_byte(torch_scorer(model, tokenizer), GeneralText(CORPUS)) == pytest.approx(
        expected, rel=1e-5
    )
