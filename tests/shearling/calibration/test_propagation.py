"""Hidden states on their way through the layers, whatever a layer does with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shearling.calibration.propagation import Batch, LayerCall, Propagation, capture
from shearling.errors import ModelUnsupported
from shearling.model.layers import TransformerLayers

TABLES = (torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.int32))


class InPlace(nn.Module):
    """Adds to its inputs in place, as a residual may."""

    def forward(self, hidden: Tensor, **_named: Any) -> Tensor:
        return hidden.add_(1)


class Model(nn.Module):
    """Three layers, each with a table of its own; all tables are the same bytes."""

    def __init__(self, *, times: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.layers = nn.ModuleList(InPlace() for _ in TABLES)
        self.times = times

    def forward(self, *, input_ids: Tensor, use_cache: bool) -> Tensor:
        hidden = self.embedding(input_ids)
        for layer, table in zip(self.layers, TABLES, strict=True):
            for _ in range(self.times):
                hidden = layer(hidden, table=table.clone())
        return hidden

    def transformer(self) -> TransformerLayers:
        return TransformerLayers("layers", tuple(self.layers), ())


def test_layers_that_write_into_their_inputs_see_them_as_they_were() -> None:
    model, ids = Model(), torch.tensor([1, 5, 2])
    states = capture(model, model.transformer(), [ids])
    embedded = model.embedding(ids)[None].detach()
    assert states.batches[0].hidden.equal(embedded)
    for _ in range(2):
        assert next(states.forward(model.layers[0])).equal(embedded + 1)
    states.advance(model.layers[0])
    states.advance(model.layers[1])
    assert states.batches[0].hidden.equal(embedded + 1 + 1)


def test_every_layer_gets_arguments_of_its_own_shape_and_type_kept_once() -> None:
    model = Model()
    states = capture(model, model.transformer(), [torch.tensor([1, 5, 2]), torch.tensor([4])])
    for index, table in enumerate(TABLES):
        first, second = (batch.calls[index].named["table"] for batch in states.batches)
        assert (first.shape, first.dtype) == (table.shape, table.dtype)
        assert first is second


def test_a_fork_stands_at_the_same_place_and_moves_by_itself() -> None:
    states = Propagation([Batch(torch.zeros(1, 2, 3), [LayerCall((), {})] * 3)])
    states.advance(InPlace())
    fork = states.fork()
    assert fork.next_layer == 1
    fork.advance(InPlace())
    assert (states.next_layer, fork.next_layer) == (1, 2)
    assert states.batches[0].hidden.equal(torch.ones(1, 2, 3))
    assert fork.batches[0].hidden.equal(torch.full((1, 2, 3), 2.0))


def test_at_most_so_many_samples_of_a_length_run_together() -> None:
    model, samples = Model(), [torch.ones(length, dtype=torch.int64) for length in (4, 4, 4, 4, 4, 3, 4)]
    states = capture(model, model.transformer(), samples, batch_size=2)
    assert [tuple(batch.hidden.shape[:2]) for batch in states.batches] == [(2, 4), (2, 4), (1, 4), (1, 3), (1, 4)]


def test_a_layer_that_is_called_twice_is_refused() -> None:
    model = Model(times=2)
    with pytest.raises(ModelUnsupported, match="6 layer calls in one forward of 3 layers"):
        capture(model, model.transformer(), [torch.tensor([1, 2])])
