"""Rows of many scored tokens: the logits of some positions are held at a time."""

from __future__ import annotations

import pytest
import torch
from lm_eval.api.instance import Instance

from shearling.evaluation import causal_scorer
from shearling.evaluation.evaluator import torch_scorer
from tests.support.tiny_models import FAMILIES, tiny_tokenizer


def test_a_long_continuation_is_scored_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, held = torch_scorer(FAMILIES["llama_tied_gqa"](), tiny_tokenizer()), []
    compute = scorer.logits_at

    def watched(input_ids: torch.Tensor, places: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        logits = compute(input_ids, places, positions)
        held.append(len(logits))
        return logits

    monkeypatch.setattr(scorer, "logits_at", watched)
    text = " the lazy fox is fast;" * 9
    asked = [
        Instance("loglikelihood", {}, ("Report:", text + end), at) for at, end in enumerate((" yes", " no, it is"))
    ]
    whole = scorer.loglikelihood(asked)
    assert len(held) == 1
    monkeypatch.setattr(causal_scorer, "MOST_POSITIONS_OF_A_ROW", 16)
    pieces = scorer.loglikelihood(asked)
    assert max(held[1:]) == 16
    assert sum(held[1:]) == held[0]
    for (expected, greedy), (found, same) in zip(whole, pieces, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
        assert greedy == same
