"""The grid of a matrix: what a weight becomes on it, what training on it computes, and what a file of it may say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shearling.elastic.elastic_lora import ElasticLoraLinear, effective_weight
from shearling.elastic.grid_file import GRID_FILE, WeightGrids, apply_grids, load_grids, save_grids
from shearling.elastic.weight_grid import LayerGrid, drawn_into_cells
from shearling.errors import ArtefactCorrupt, ArtefactMismatch, ArtefactMissing
from shearling.model.checkpoint import hash_weights, save_model
from shearling.quantization.rounding import LIMITS, Rounded, round_matrix
from tests.support.tiny_models import tiny_tokenizer, wide_model

OUT, IN, GROUP = 20, 64, 16


def half_zero(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(OUT, IN, generator=generator) > 0.5
    return torch.randn(OUT, IN, generator=generator) * mask, mask


def grid_of(weight: Tensor, bits: int = 4) -> Rounded:
    group = IN if bits == 8 else GROUP
    inputs = torch.randn(200, IN, generator=torch.Generator().manual_seed(3))
    return round_matrix(weight, inputs.T @ inputs / 200, group_size=group, passes=2, bits=bits)


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_onto_a_grid_takes_the_nearest_integer_and_keeps_zeros(bits: int) -> None:
    weight, mask = half_zero()
    grid = LayerGrid(grid_of(weight, bits).scales, bits)
    moved = weight + 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * mask
    rounded = grid.round(moved)
    assert torch.equal(rounded.weight, grid.snap(moved))
    assert not rounded.weight[~mask].any()
    least, most = LIMITS[bits]
    spread = grid.scales.repeat_interleave(IN // grid.scales.shape[1], dim=1)
    errors = torch.stack([(code * spread - moved).abs() for code in range(least, most + 1)])
    torch.testing.assert_close((rounded.weight - moved).abs(), errors.amin(dim=0))


def test_a_weight_in_its_cell_rounds_to_the_integers_that_were_chosen_for_it() -> None:
    """Compensated integers are often not the nearest; the frozen weight is the closest one that gives them."""
    weight, mask = half_zero()
    rounded = grid_of(weight)
    grid = LayerGrid(rounded.scales, 4)
    assert not torch.equal(grid.snap(weight), rounded.weight)
    drawn = drawn_into_cells(weight, rounded)
    assert torch.equal(grid.round(drawn).codes, rounded.codes)
    assert not drawn[~mask].any()
    steps = rounded.scales.abs().repeat_interleave(GROUP, dim=1)
    near = (weight - rounded.weight).abs() < 0.44 * steps
    torch.testing.assert_close(drawn[near], weight[near])
    assert (drawn[mask] != rounded.weight[mask]).float().mean() > 0.9


@pytest.fixture
def layer() -> ElasticLoraLinear:
    weight, mask = half_zero()
    rounded = grid_of(weight)
    base = nn.Linear(IN, OUT)
    with torch.no_grad():
        base.weight.copy_(drawn_into_cells(weight, rounded))
    grid = LayerGrid(rounded.scales, 4)
    layer = ElasticLoraLinear(
        base, r_max=6, scaling=2.0, mask=mask, grid=grid, generator=torch.Generator().manual_seed(5)
    )
    with torch.no_grad():
        layer.lora_b.copy_(0.1 * torch.randn(OUT, 6, generator=torch.Generator().manual_seed(6)))
    return layer


@pytest.mark.parametrize("rank", [6, 2])
def test_what_is_trained_is_what_is_merged_at_every_rank(layer: ElasticLoraLinear, rank: int) -> None:
    layer.activate(rank)
    x = torch.randn(3, 5, IN, generator=torch.Generator().manual_seed(7))
    merged = layer.merged_weight()
    assert torch.equal(layer(x), nn.functional.linear(x, merged, layer.bias))
    layer.hold_merged(hold=True)
    assert torch.equal(layer(x), nn.functional.linear(x, merged, layer.bias))
    assert layer.grid is not None
    assert torch.equal(layer.grid.round(merged).weight, merged)
    assert not merged[~layer.mask].any()
    unrounded = effective_weight(
        layer.weight, layer.lora_a[:rank], layer.lora_b[:, :rank], scaling=layer.scaling, mask=layer.mask
    )
    assert not torch.equal(merged, unrounded)


def test_the_gradient_passes_straight_through_the_rounding(layer: ElasticLoraLinear) -> None:
    """That of the same layer whose weight is the rounded one plus an update that is zero."""
    x = torch.randn(4, IN, generator=torch.Generator().manual_seed(8), requires_grad=True)
    layer(x).square().sum().backward()
    found = layer.lora_a.grad.clone(), layer.lora_b.grad.clone(), x.grad.clone()
    a, b = (item.detach().clone().requires_grad_() for item in (layer.lora_a, layer.lora_b))
    y = x.detach().clone().requires_grad_()
    update = 2.0 * (b @ a) * layer.mask
    weight = layer.merged_weight() + update - update.detach()
    nn.functional.linear(y, weight, layer.bias).square().sum().backward()
    for ours, expected in zip(found, (a.grad, b.grad, y.grad), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, Path, WeightGrids]:
    """Directory of a model, and the grids of its linears, on disk."""
    model = wide_model()
    save_model(model, tiny_tokenizer(), tmp_path / "base")
    matrices = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and path != "lm_head":
            width = module.in_features
            matrices[path] = round_matrix(module.weight.detach(), torch.eye(width), group_size=32, passes=1)
    grids = WeightGrids(4, hash_weights(tmp_path / "base"), matrices)
    save_grids(tmp_path / GRID_FILE, grids)
    return tmp_path / "base", tmp_path / GRID_FILE, grids


def test_a_file_gives_back_what_was_stored_and_puts_weights_onto_it(stored: tuple[Path, Path, WeightGrids]) -> None:
    base, file, grids = stored
    found = load_grids(file, base=base)
    assert (found.bits, found.base_weights_sha256) == (grids.bits, grids.base_weights_sha256)
    assert found.matrices.keys() == grids.matrices.keys()
    for path, rounded in grids.matrices.items():
        assert found.matrices[path].codes.dtype == torch.int8
        assert torch.equal(found.matrices[path].codes.float(), rounded.codes)
        assert torch.equal(found.matrices[path].weight, rounded.weight)
        assert torch.equal(found.matrices[path].scales, rounded.scales)
        assert found.matrices[path].group_size == rounded.group_size
    model = wide_model()
    trained = "model.layers.0.mlp.up_proj"
    apply_grids(model, found, trained={trained})
    for path, rounded in grids.matrices.items():
        weight = model.get_submodule(path).weight
        assert torch.equal(LayerGrid(rounded.scales, 4).round(weight).codes, rounded.codes)
        assert torch.equal(weight, rounded.weight) == (path != trained)


def test_a_grid_of_another_model_or_shape_is_refused(stored: tuple[Path, Path, WeightGrids], tmp_path: Path) -> None:
    _, file, grids = stored
    other = wide_model()
    with torch.no_grad():
        other.get_submodule("model.norm").weight.mul_(2)
    save_model(other, tiny_tokenizer(), tmp_path / "other")
    with pytest.raises(ArtefactMismatch, match="made for other weights"):
        load_grids(file, base=tmp_path / "other")
    with pytest.raises(ArtefactMismatch, match="no linear layer of its shape"):
        apply_grids(wide_model(inner=128), grids, trained=())


def _spoil_scale(tensors: dict[str, Tensor], name: str) -> None:
    tensors[f"{name}.scales"][3, 0] = 0


def _spoil_code(tensors: dict[str, Tensor], name: str) -> None:
    tensors[f"{name}.codes"][0, 0] = 9


def _spoil_groups(tensors: dict[str, Tensor], name: str) -> None:
    tensors[f"{name}.scales"] = torch.ones(len(tensors[f"{name}.scales"]), 3, dtype=torch.float16)


def _widen(tensors: dict[str, Tensor], name: str) -> None:
    tensors[f"{name}.codes"] = tensors[f"{name}.codes"].float()


def _lose(tensors: dict[str, Tensor], name: str) -> None:
    del tensors[f"{name}.scales"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_spoil_scale, "a scale is zero or not finite"),
        (_spoil_code, "outside -8..7"),
        (_spoil_groups, "3 groups do not divide"),
        (_widen, "integers of torch.float32"),
        (_lose, "do not fit together"),
    ],
)
def test_a_file_that_lies_is_refused(stored: tuple[Path, Path, WeightGrids], spoil, message: str) -> None:
    base, file, grids = stored
    tensors = load_file(file)
    spoil(tensors, "model.layers.1.self_attn.q_proj")
    save_file(tensors, file, metadata={"grid": f"base_weights_sha256={grids.base_weights_sha256}|bits=4"})
    with pytest.raises(ArtefactCorrupt, match=message) as raised:
        load_grids(file, base=base)
    assert "q_proj" in str(raised.value)


def test_what_is_no_grid_is_refused(stored: tuple[Path, Path, WeightGrids], tmp_path: Path) -> None:
    base, file, _ = stored
    with pytest.raises(ArtefactMissing):
        load_grids(tmp_path / "nowhere", base=base)
    save_file(load_file(file), file, metadata={"grid": "bits=4"})
    with pytest.raises(ArtefactCorrupt, match="does not name the base and the bits"):
        load_grids(file, base=base)
    file.write_bytes(b"nonsense")
    with pytest.raises(ArtefactCorrupt, match="not a readable grid"):
        load_grids(file, base=base)
