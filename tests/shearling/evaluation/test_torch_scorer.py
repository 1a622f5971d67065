"""Logits of single positions, as torch computes them."""

import pytest
import torch

from shearling.errors import ModelUnsupported
from shearling.evaluation.torch_scorer import TorchScorer
from shearling.model.checkpoint import load_model, load_tokenizer
from tests.support.tiny_models import FAMILIES, MIXTURES, save_tiny

INPUT_IDS = torch.arange(1, 25).reshape(3, 8)
PLACES, POSITIONS = torch.tensor([0, 0, 2, 1]), torch.tensor([7, 3, 2, 5])


def scorer_of(family, directory, *, bf16):
    source = save_tiny(family, directory)
    return TorchScorer(load_model(source).eval(), load_tokenizer(source), batch_size=3, bf16=bf16)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
def test_logits_of_single_positions_are_those_of_all(family, bf16, tmp_path):
    scorer = scorer_of(family, tmp_path / "model", bf16=bf16)
    everywhere = scorer.logits(INPUT_IDS, 0)
    found = scorer.logits_at(INPUT_IDS, PLACES, POSITIONS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, everywhere[PLACES, POSITIONS], rtol=1e-5, atol=1e-5)
    # What stood in for the head is gone.
    assert torch.equal(scorer.logits(INPUT_IDS, 0), everywhere)


def test_the_vocabulary_is_computed_where_it_is_asked_for(tmp_path):
    """On SmolLM2 it is a third of the work of a search else."""
    scorer = scorer_of("llama", tmp_path / "model", bf16=True)
    head, computed = scorer.model.get_output_embeddings(), []
    product = head.forward
    head.forward = lambda hidden: computed.append(tuple(hidden.shape[:-1])) or product(hidden)
    scorer.logits_at(INPUT_IDS, PLACES, POSITIONS)
    assert computed == [(1, len(PLACES))]


def test_choices_of_one_token_share_a_position(tmp_path, monkeypatch):
    scorer = scorer_of("llama", tmp_path / "model", bf16=False)
    compute, asked = scorer.logits_at, []
    monkeypatch.setattr(
        scorer, "logits_at", lambda *batch: asked.append(batch[1].tolist() + batch[2].tolist()) or compute(*batch)
    )
    requests = [(None, [4, 5, 6], [token]) for token in (7, 8, 9)]
    found = scorer._loglikelihood_tokens(requests)
    assert asked == [[0, 2]]
    expected = scorer.logits(torch.tensor([[4, 5, 6]]), 2)[0, 0].double().log_softmax(-1)
    assert [score for score, _ in found] == pytest.approx(expected[7:10].tolist(), rel=1e-5)
    assert [greedy for _, greedy in found] == [int(expected.argmax()) == token for token in (7, 8, 9)]


def test_a_model_that_does_not_call_its_head_is_refused(tmp_path):
    scorer = scorer_of("llama", tmp_path / "model", bf16=False)
    head = scorer.model.get_output_embeddings()
    scorer.model.lm_head = torch.nn.Linear(head.in_features, head.out_features, bias=False)
    scorer.model.get_output_embeddings = lambda: head
    with pytest.raises(ModelUnsupported, match="does not compute its logits by calling its output embedding"):
        scorer.logits_at(INPUT_IDS, PLACES, POSITIONS)
