"""SparseGPT and ALPS against brute force on layers small enough for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from shearling.calibration.gram import DAMPING, Gram, LayerGrams, layer_error
from shearling.errors import ModelUnsupported, NonFiniteWeights
from tests.support.tiny_models import FAMILIES, VOCABULARY
from train.sparsity.criteria.alps import split_prune
from train.sparsity.criteria.criterion import Pruned
from train.sparsity.criteria.sparsegpt import SparseGPT, _block_columns, surgeon_prune
from train.sparsity.pattern import Pattern, SemiStructured, Unstructured, keep_mask
from train.sparsity.sparsify import sparsify

PATTERNS = [Unstructured(0.5), Unstructured(0.7), SemiStructured(2, 4)]


def correlated(columns: int, *, seed: int, rows: int = 400) -> Tensor:
    """[rows, columns] inputs whose channels move together, as those of a transformer do."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns // 2, columns, generator=generator)
    noise = torch.randn(rows, columns, generator=generator)
    return torch.randn(rows, columns // 2, generator=generator) @ mixing + 0.5 * noise


def layer(columns: int, *, seed: int = 0, out: int = 12) -> tuple[Tensor, Tensor]:
    """Weight and damped Hessian."""
    gram, inputs = Gram(), correlated(columns, seed=seed)
    gram.add_product(inputs.T @ inputs, tokens=len(inputs))
    weight = torch.randn(out, columns, generator=torch.Generator().manual_seed(seed + 1))
    return weight, gram.damped(where="layer")


def wanda_prune(weight: Tensor, hessian: Tensor, pattern: Pattern) -> Pruned:
    mask = keep_mask(weight.abs() * hessian.diagonal().sqrt(), pattern, where="layer")
    return Pruned(mask, weight * mask)


def brute_force(weight: Tensor, hessian: Tensor, mask: Tensor) -> Tensor:
    """Columns settled one after another in float64, each inverse of H computed anew: the definition of SparseGPT."""
    updated, whole = weight.double().clone(), hessian.double()
    columns = weight.shape[1]
    for column in range(columns):
        inverse = torch.linalg.inv(whole[column:, column:])
        for row in range(weight.shape[0]):
            if not mask[row, column]:
                updated[row, column:] -= updated[row, column] / inverse[0, 0] * inverse[0]
                updated[row, column] = 0
    return updated


@pytest.mark.parametrize("columns", [24, 200], ids=["one block", "two blocks"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_sparsegpt_updates_as_the_definition_says(pattern: Pattern, columns: int) -> None:
    weight, hessian = layer(columns)
    pruned = surgeon_prune(weight, hessian, pattern, where="layer")
    assert pattern.keep(pruned.mask.float()).equal(pruned.mask)
    assert pruned.weight is not None
    expected = brute_force(weight, hessian, pruned.mask)
    torch.testing.assert_close(pruned.weight.double(), expected, rtol=1e-3, atol=1e-3)
    assert not pruned.weight[~pruned.mask].any()


def test_sparsegpt_chooses_by_what_removal_costs() -> None:
    """One block, so that the mask follows from the first scores: w² / [L]_jj² with the Cholesky factor of H⁻¹."""
    weight, hessian = layer(24)
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian.double()), upper=True)
    expected = Unstructured(0.5).keep(((weight.double() / factor.diagonal()) ** 2).float())
    assert surgeon_prune(weight, hessian, Unstructured(0.5), where="layer").mask.equal(expected)


@pytest.mark.parametrize("ratio", [0.5, 0.7])
def test_sparsegpt_chooses_each_block_by_weights_that_made_up_for_those_before(ratio: float) -> None:
    """Columns 0 to 127, 128 to 255 and 256 to 319. Of all columns that are not settled those go that cost least now, as
    many as the row still has to lose; of these the block settles its own.
    """
    weight, hessian = layer(320)
    found = surgeon_prune(weight, hessian, Unstructured(ratio), where="layer").mask
    whole = hessian.double()
    left = torch.stack([torch.linalg.inv(whole[column:, column:])[0, 0] for column in range(320)])
    mask = torch.ones_like(found)
    for start in (0, 128, 256):
        costs = brute_force(weight, hessian, mask).square() / left
        for row, kept in enumerate(mask):
            room = int(320 * ratio) - int((~kept).sum())
            going = start + costs[row, start:].argsort()[:room]
            kept[going[going < start + 128]] = False
    assert (found == mask).double().mean() > 0.999
    # It matters: by what they cost at the beginning others would go.
    at_first = Unstructured(ratio).keep((weight.double().square() / left).float())
    assert (found == at_first)[:, 128:].double().mean() < 0.95


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Unstructured(0.5), Unstructured(0.6)),
        (Unstructured(0.5), Unstructured(0.51)),
        (SemiStructured(1, 4), SemiStructured(2, 4)),
    ],
    ids=str,
)
def test_what_sparsegpt_pruned_stays_pruned_in_every_block(first: Pattern, second: Pattern) -> None:
    weight, hessian = layer(300)
    before = surgeon_prune(weight, hessian, first, where="layer")
    assert before.weight is not None
    after = surgeon_prune(before.weight, hessian, second, where="layer")
    assert after.weight is not None
    assert not (after.mask & ~before.mask).any()
    assert not after.weight[~after.mask].any()
    assert second.keep(after.mask.float()).equal(after.mask)


def test_sparsegpt_prunes_no_more_zeros_than_the_pattern_has() -> None:
    """Rows with 3 of 4 zeros: 2:4 takes two of them in each run, half of the row a half."""
    weight, hessian = layer(300)
    zeros = torch.ones_like(weight, dtype=torch.bool)
    zeros[:, ::4] = False
    for pattern in (SemiStructured(2, 4), Unstructured(0.5)):
        pruned = surgeon_prune(weight.masked_fill(zeros, 0), hessian, pattern, where="layer")
        assert zeros[~pruned.mask].all()
        assert pattern.keep(pruned.mask.float()).equal(pruned.mask)
        # As in blocks that were added as the identity, whose projections are nothing yet.
        nothing = surgeon_prune(torch.zeros(4, 300), hessian, pattern, where="layer").mask
        assert pattern.keep(nothing.float()).equal(nothing)


@pytest.mark.parametrize(("pruned_of_run", "run"), [(2, 4), (4, 8)])
def test_sparsegpt_chooses_each_run_by_weights_that_made_up_for_those_before(pruned_of_run: int, run: int) -> None:
    weight, hessian = layer(160)
    found = surgeon_prune(weight, hessian, SemiStructured(pruned_of_run, run), where="layer").mask
    mask, whole = torch.ones_like(found), hessian.double()
    for start in range(0, 160, run):
        # What is left of the columns before it has nothing more to say.
        inverse = torch.linalg.inv(whole[start:, start:])
        factor = torch.linalg.cholesky(inverse, upper=True).diagonal()[:run]
        settled = brute_force(weight, hessian, mask)[:, start : start + run]
        dropped = (settled / factor).square().topk(pruned_of_run, largest=False).indices
        mask[:, start : start + run].scatter_(1, dropped, False)
    assert (found == mask).double().mean() > 0.999


@pytest.mark.parametrize("method", [surgeon_prune, split_prune])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_never_worse_than_wanda_in_layer_error(method, pattern: Pattern, seed: int) -> None:
    weight, hessian = layer(160, seed=seed)
    pruned, wanda = method(weight, hessian, pattern, where="layer"), wanda_prune(weight, hessian, pattern)
    assert pattern.keep(pruned.mask.float()).equal(pruned.mask)
    assert not pruned.weight[~pruned.mask].any()
    assert layer_error(weight, pruned.weight, hessian) < layer_error(weight, wanda.weight, hessian)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_alps_is_near_the_best_of_all_masks(pattern: Pattern) -> None:
    """Rows of eight weights: every mask of the right size, each with its least-squares weights."""
    weight, hessian = layer(8, out=16)
    best = torch.full((16,), torch.inf, dtype=torch.float64)
    for bits in range(256):
        kept = torch.tensor([bits >> place & 1 for place in range(8)], dtype=torch.bool)
        if int((~kept).sum()) != int(8 * pattern.ratio) or not pattern.keep(kept[None].float())[0].equal(kept):
            continue
        inner = hessian.double()[kept][:, kept]
        fitted = torch.zeros(16, 8, dtype=torch.float64)
        fitted[:, kept] = torch.linalg.solve(inner, hessian.double()[kept] @ weight.double().T).T
        difference = weight.double() - fitted
        best = torch.minimum(best, ((difference @ hessian.double()) * difference).sum(1))
    pruned = split_prune(weight, hessian, pattern, where="layer", most_iterations=300)
    difference = weight.double() - pruned.weight.double()
    found = ((difference @ hessian.double()) * difference).sum()
    wanda = weight.double() - wanda_prune(weight, hessian, pattern).weight.double()
    assert best.sum() - 1e-6 <= found
    # Of the way from Wanda's error to the least possible, most is gone.
    assert found - best.sum() < 0.25 * (((wanda @ hessian.double()) * wanda).sum() - best.sum())


def test_linears_with_the_same_input_share_a_product() -> None:
    grams, shared, other = LayerGrams(["q", "k", "down"]), correlated(6, seed=0), correlated(10, seed=1)
    for path, inputs in (("q", shared), ("k", shared), ("down", other[None])):
        grams.watch(path, inputs)
    for path, inputs in (("q", shared), ("k", shared), ("down", other)):
        expected = inputs.T @ inputs
        expected.diagonal().add_(DAMPING * expected.diagonal().mean())
        torch.testing.assert_close(grams[path].damped(where=path), expected)
        assert grams[path].tokens == len(inputs)


def test_a_hessian_that_holds_nothing_or_nan_is_refused() -> None:
    with pytest.raises(ModelUnsupported, match="no calibration token"):
        Gram().damped(where="layer")
    gram = Gram()
    gram.add_product(torch.full((4, 4), torch.nan), tokens=1)
    with pytest.raises(NonFiniteWeights, match="NaN"):
        SparseGPT(gram).prune(torch.ones(2, 4), Unstructured(0.5), where="layer")
    part = torch.eye(4)
    part[1, 2] = torch.inf
    gram = Gram()
    gram.add_product(part, tokens=1)
    with pytest.raises(NonFiniteWeights, match="NaN"):
        gram.damped(where="layer")


@pytest.mark.parametrize("method", [surgeon_prune, split_prune])
def test_inputs_that_were_all_zero_leave_the_choice_to_the_weights(method: Callable[..., Pruned]) -> None:
    silent, weight = Gram(), layer(16)[0]
    silent.add_product(torch.zeros(16, 16), tokens=7)
    hessian = silent.damped(where="layer")
    assert hessian.equal(torch.eye(16))
    pruned = method(weight, hessian, Unstructured(0.5), where="layer")
    assert pruned.mask.sum(1).eq(8).all()
    assert pruned.weight is not None
    by_size = weight * keep_mask(weight.abs(), Unstructured(0.5), where="layer")
    assert layer_error(weight, pruned.weight * pruned.mask, hessian) <= 1.1 * layer_error(weight, by_size, hessian)


@pytest.mark.parametrize("method", [surgeon_prune, split_prune])
def test_nothing_changes_where_nothing_goes(method: Callable[..., Pruned]) -> None:
    weight, hessian = layer(24)
    pruned = method(weight, hessian, Unstructured(0.0), where="layer")
    assert pruned.mask.all()
    assert pruned.weight is None or pruned.weight.equal(weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches_add_up_in_float32_and_nothing_is_modified(dtype: torch.dtype) -> None:
    """H + 0.01 mean(diag H) I of all that was shown, whoever shares the product of a batch."""
    grams, batches = LayerGrams(["q", "k"]), [correlated(6, seed=seed, rows=40 + seed).to(dtype) for seed in range(3)]
    copies = [batch.clone() for batch in batches]
    for batch in batches:
        for path in ("q", "k"):
            grams.watch(path, batch)
    whole = torch.cat(copies).double()
    expected = whole.T @ whole
    expected += 0.01 * expected.diagonal().mean() * torch.eye(6)
    for path in ("q", "k"):
        # Asked for twice: damping is not added to what was gathered.
        for _ in range(2):
            torch.testing.assert_close(grams[path].damped(where=path).double(), expected, rtol=1e-5, atol=1e-3)
        assert grams[path].tokens == len(whole)
    assert all(now.equal(before) for now, before in zip(batches, copies, strict=True))


def test_the_error_of_a_layer_is_a_share_of_its_outputs() -> None:
    inputs = correlated(6, seed=0).double()
    weight, other = torch.randn(2, 5, 6, dtype=torch.float64)
    outputs, hessian = inputs @ weight.T, (inputs.T @ inputs).float()
    expected = (outputs - inputs @ other.T).square().sum() / outputs.square().sum()
    assert layer_error(weight.float(), other.float(), hessian) == pytest.approx(float(expected), rel=1e-4)
    assert layer_error(weight.float(), torch.zeros(5, 6), hessian) == pytest.approx(1)
    zeros = torch.zeros(5, 6)
    assert (layer_error(zeros, zeros, hessian), layer_error(zeros, other.float(), hessian)) == (0.0, 1.0)


@pytest.mark.parametrize("method", [surgeon_prune, split_prune])
def test_weights_and_hessian_are_not_modified(method) -> None:
    weight, hessian = layer(24)
    copies = weight.clone(), hessian.clone()
    method(weight, hessian, Unstructured(0.5), where="layer")
    assert weight.equal(copies[0])
    assert hessian.equal(copies[1])


def test_alps_ends_when_its_mask_rests() -> None:
    """More iterations than the default change nothing, not even a rounding."""
    weight, hessian = layer(48)
    found = split_prune(weight, hessian, Unstructured(0.5), where="layer")
    longer = split_prune(weight, hessian, Unstructured(0.5), where="layer", most_iterations=400)
    assert found.mask.equal(longer.mask)
    assert found.weight.equal(longer.weight)


@pytest.mark.parametrize("columns", [1, 128, 129, 2048, 2049, 8192, 49152])
def test_a_row_has_at_most_sixteen_blocks_of_columns(columns: int) -> None:
    block = _block_columns(columns)
    assert block % 128 == 0
    assert -(-columns // block) <= 16
    # And no larger than that takes.
    assert block == 128 or -(-columns // (block - 128)) > 16


@pytest.mark.parametrize("scale", [1.0, 1e6], ids=["plain", "large"])
def test_settled_columns_stay_settled_whatever_the_scale(scale: float) -> None:
    """One weight of a row stays, the first. Columns 1 to 127 all say what column 200 says, so that removing them makes
    it the largest of all by far, once the first is settled.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(600, 256, generator=generator)
    inputs[:, 1:128] = inputs[:, 200:201] + 0.3 * torch.randn(600, 127, generator=generator)
    weight = torch.full((1, 256), 0.01)
    weight[0, 0], weight[0, 1:128], weight[0, 200] = 3.0, 0.9, 0.9
    pruned = surgeon_prune(scale * weight, inputs.T @ inputs, Unstructured(255.5 / 256), where="layer")
    assert pruned.mask.nonzero().tolist() == [[0, 0]]


@pytest.mark.parametrize("method", ["sparsegpt", "alps"])
def test_a_text_shorter_than_a_row_is_damped_and_said_so(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Five tokens, rows of 48: H is singular, and damped so that the weights stay finite."""
    model = FAMILIES["llama"]()
    text = [torch.randint(3, VOCABULARY, (5,), generator=torch.Generator().manual_seed(0))]
    masks = sparsify(model, text, method=method, pattern=Unstructured(0.5)).masks
    assert "has 5 tokens, fewer than" in " ".join(capsys.readouterr().err.split())
    weights = dict(model.named_modules())
    for path, mask in masks.items():
        assert weights[path].weight.isfinite().all()
        assert not weights[path].weight[~mask].any()


@pytest.mark.parametrize(("tokens", "short"), [(87, True), (88, False)])
def test_a_text_is_short_by_the_widest_row(tokens: int, short: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of 48, and of 88 in down_proj."""
    text = [torch.randint(3, VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(0))]
    sparsify(FAMILIES["llama"](), text, method="sparsegpt", pattern=Unstructured(0.5))
    said = " ".join(capsys.readouterr().err.split())
    assert ("fewer than the 88 inputs of model.layers.0.mlp.down_proj" in said) == short
