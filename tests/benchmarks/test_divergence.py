"""Files held against their origin on general text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import divergence
from benchmarks.quality.general_text import GeneralText
from export.formats.onnx import write_onnx
from shearling.model.checkpoint import save_model
from tests.support.exported_files import stored_as
from tests.support.tiny_models import CORPUS, FAMILIES, save_tiny, tiny_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def short_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "held_back_text", lambda: GeneralText(CORPUS * 3))
    for name, value in (("WINDOWS", 5), ("WINDOW_TOKENS", 24)):
        monkeypatch.setattr(divergence, name, value)


def test_a_file_is_as_far_as_its_logits_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    origin = save_tiny("llama", tmp_path / "origin")
    model = FAMILIES["llama"]()
    write_onnx(model, tiny_tokenizer(), tmp_path / "exact" / "onnx", stored_as("fp32"))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.5)
    save_model(model, tiny_tokenizer(), tmp_path / "sharper")
    names = [str(origin), str(tmp_path / "exact"), str(tmp_path / "sharper")]
    assert divergence.main(names) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[2].strip() for row in rows] == ["onnx", "torch"]
    assert float(rows[0][3]) == 0.0
    assert rows[0][4].strip() == "100.0%"
    ids = torch.tensor([token for text in CORPUS * 3 for token in tiny_tokenizer()(text)["input_ids"]][:120])
    with torch.no_grad():
        logits = FAMILIES["llama"]()(input_ids=ids.view(5, 24)).logits.double()
    wanted, found = logits.log_softmax(-1), (1.5 * logits).log_softmax(-1)
    expected = float((wanted.exp() * (wanted - found)).sum(-1).mean())
    assert float(rows[1][3]) == pytest.approx(expected, abs=1e-4)
    # A sharper model is as sure of the same tokens.
    assert rows[1][4].strip() == "100.0%"


def test_too_little_text_and_a_model_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = save_tiny("llama", tmp_path / "origin")
    assert divergence.main([str(origin), str(tmp_path / "nowhere")]) == 3
    monkeypatch.setattr(divergence, "WINDOWS", 500)
    assert divergence.main([str(origin), str(origin)]) == 2
