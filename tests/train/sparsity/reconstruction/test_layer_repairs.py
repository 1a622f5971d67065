"""Reconstruction as a part of pruning: layers come nearer to the dense ones, zeros stay, reports tell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shearling.calibration.propagation import Batch, LayerCall, Propagation
from shearling.elastic.mask import MASK_FILE, check_masked_zeros, load_masks
from shearling.errors import ModelUnsupported, NonFiniteWeights, RecipeInvalid, ShearlingError, TrainingDiverged
from shearling.model.checkpoint import load_model
from shearling.recipe.sparsity import ReconstructionSection
from shearling.run import Run
from shearling.strict_json import read_document
from tests.support.tiny_models import FAMILIES, VOCABULARY, bert
from tests.support.tiny_runs import tiny_recipe
from train.sparsity.artefact import SPARSITY_FILE, SparsityReport
from train.sparsity.pattern import Pattern, SemiStructured, Unstructured
from train.sparsity.reconstruction import layer_tuning
from train.sparsity.reconstruction.layer_tuning import output_error, tune_layer
from train.sparsity.sparsify import Sparsified, sparsify
from train.stage import run_recipe

METHODS = ["wanda", "sparsegpt", "alps", "magnitude"]


def text(count: int = 24) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(3, VOCABULARY, (24,), generator=generator) for _ in range(count)]


def repaired(
    method: str, reconstruction: ReconstructionSection | None, *, pattern: Pattern, family: str = "llama"
) -> tuple[nn.Module, Sparsified]:
    model = FAMILIES[family]()
    return model, sparsify(model, text(), method=method, pattern=pattern, reconstruction=reconstruction, batch_size=4)


def distance(model: nn.Module, dense: nn.Module) -> float:
    """Squared distance of the last hidden states on the calibration text."""
    with torch.no_grad():
        found, wanted = (
            m(input_ids=torch.stack(text()), output_hidden_states=True).hidden_states[-2] for m in (model, dense)
        )
    return (found - wanted).square().mean().item()


@pytest.mark.parametrize("pattern", [Unstructured(0.5), SemiStructured(2, 4)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_each_repair_brings_the_model_nearer_to_the_dense_one(method: str, pattern: Pattern) -> None:
    dense = FAMILIES["llama"]()
    repairs = {
        "none": None,
        "matrices": ReconstructionSection(matrix_steps=15),
        "swapped": ReconstructionSection(swaps=10, matrix_steps=15),
        "layers": ReconstructionSection(matrix_steps=15, layer_epochs=8, learning_rate=0.01),
    }
    distances = {}
    for name, section in repairs.items():
        model, sparsified = repaired(method, section, pattern=pattern)
        check_masked_zeros(model, sparsified.masks)
        for mask in sparsified.masks.values():
            assert pattern.keep(mask.float()).equal(mask)
        assert len(sparsified.errors) == (0 if name != "layers" else len(dense.model.layers))
        assert all(error.tuned < error.pruned for error in sparsified.errors)
        distances[name] = distance(model, dense)
    if method in ("wanda", "magnitude"):
        assert distances["matrices"] < 0.8 * distances["none"]
        assert distances["swapped"] < distances["matrices"]
    assert distances["layers"] < distances["matrices"]


def test_it_is_deterministic_and_touches_only_what_is_pruned() -> None:
    section = ReconstructionSection(swaps=3, layer_epochs=2)
    (first, _), (second, _) = (repaired("wanda", section, pattern=Unstructured(0.5)) for _ in range(2))
    untouched = dict(FAMILIES["llama"]().named_parameters())
    for (name, parameter), again in zip(first.named_parameters(), second.parameters(), strict=True):
        assert parameter.equal(again)
        if "_proj" not in name:
            assert parameter.equal(untouched[name])
        assert parameter.grad is None


def test_the_seed_orders_the_batches_of_every_layer() -> None:
    section = ReconstructionSection(layer_epochs=1, learning_rate=0.01)

    def tuned(seed: int) -> list[Tensor]:
        model = FAMILIES["mistral"]()
        sparsify(model, text(4), method="magnitude", pattern=Unstructured(0.5), reconstruction=section, seed=seed)
        return [layer.mlp.down_proj.weight for layer in model.model.layers]

    assert not any(one.equal(other) for one, other in zip(tuned(0), tuned(1), strict=True))


def layer_inputs_and_outputs(model: nn.Module, samples: list[Tensor]) -> list[list[tuple[Tensor, Tensor]]]:
    """Of every layer and sample what enters and what leaves, in float64."""
    seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in model.model.layers]

    def record(found: list[tuple[Tensor, Tensor]]):
        def hook(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found.append((inputs[0].double(), output.double()))

        return hook

    hooks = [layer.register_forward_hook(record(found)) for layer, found in zip(model.model.layers, seen, strict=True)]
    with torch.no_grad():
        for sample in samples:
            model(input_ids=sample[None])
    for hook in hooks:
        hook.remove()
    return seen


def test_errors_are_shares_of_what_a_layer_adds_with_the_dense_model_as_the_target() -> None:
    """Measured anew on the finished model, by hooks: a layer's inputs come from the pruned layers before it."""
    dense, samples = FAMILIES["llama"](), text(3)
    model, section = FAMILIES["llama"](), ReconstructionSection(layer_epochs=2, learning_rate=0.01)
    errors = sparsify(model, samples, method="wanda", pattern=Unstructured(0.5), reconstruction=section).errors
    pairs = zip(layer_inputs_and_outputs(model, samples), layer_inputs_and_outputs(dense, samples), strict=True)
    for error, (found, wanted) in zip(errors, pairs, strict=True):
        distances = [(output - target).square().mean() for (_, output), (_, target) in zip(found, wanted, strict=True)]
        added = [(target - inputs).square().mean() for (inputs, _), (_, target) in zip(found, wanted, strict=True)]
        assert error.tuned == pytest.approx(float(sum(distances) / sum(added)), rel=1e-3)


def test_a_refit_that_diverges_is_refused_by_module() -> None:
    """Weights so large that the squares of their errors are infinite."""
    model, path = FAMILIES["llama"](), "model.layers.0.self_attn.q_proj"
    with torch.no_grad():
        model.get_submodule(path).weight.mul_(1e30)
    section = ReconstructionSection(matrix_steps=2)
    with pytest.raises(NonFiniteWeights, match="returned NaN or infinity") as caught:
        sparsify(model, text(2), method="magnitude", pattern=Unstructured(0.5), reconstruction=section)
    assert caught.value.where == path


def one_linear(*, batches: int = 1) -> tuple[nn.Linear, Tensor, Propagation, list[Tensor]]:
    """A pruned linear as a layer of its own, its mask, and inputs with what the dense one makes of them."""
    layer = nn.Linear(6, 6, bias=False).requires_grad_(False)
    inputs = [torch.randn(2, 5, 6) for _ in range(batches)]
    targets = [layer(batch) for batch in inputs]
    mask = torch.rand(6, 6) > 0.5
    layer.weight.mul_(mask)
    return layer, mask, Propagation([Batch(batch, [LayerCall((), {})]) for batch in inputs]), targets


def test_tuning_is_adam_with_a_rate_that_falls_linearly_to_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six updates in float64, by the formulas of Adam; the rate is a share of the root mean square of what is kept."""
    monkeypatch.setattr(layer_tuning, "resolve_precision", lambda _requested, device: "fp32")
    layer, mask, states, targets = one_linear()
    weight, inputs, target = layer.weight.double(), states.batches[0].hidden.double(), targets[0].double()
    rate = 0.05 * weight[mask].square().mean().sqrt()
    added = (target - inputs).square().mean()
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(6):
        difference = inputs @ weight.T - target
        gradient = 2 * torch.einsum("bti,btj->ij", difference, inputs) / difference.numel() / added * mask
        first, second = 0.9 * first + 0.1 * gradient, 0.95 * second + 0.05 * gradient.square()
        unbiased = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.95 ** (step + 1))
        weight = weight - rate * (6 - step) / 6 * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    tune_layer(layer, {"x": layer}, {"x": mask}, states, targets, epochs=6, learning_rate=0.05, seed=0)
    torch.testing.assert_close(layer.weight.double(), weight, rtol=1e-4, atol=1e-5)
    assert not layer.weight.requires_grad
    assert layer.weight.grad is None


def test_a_rate_that_diverges_ends_as_a_training_that_does() -> None:
    layer, mask, states, targets = one_linear()
    with pytest.raises(TrainingDiverged, match="hold NaN or infinity") as caught:
        tune_layer(layer, {"x": layer}, {"x": mask}, states, targets, epochs=6, learning_rate=1e30, seed=0)
    assert (caught.value.exit_code, caught.value.where) == (1, "x")


def test_a_layer_that_adds_nothing_has_an_error() -> None:
    layer, _, states, _ = one_linear()
    unchanged = [batch.hidden for batch in states.batches]
    assert output_error(nn.Identity(), states, unchanged) == 0
    assert output_error(layer, states, unchanged) > 1


def test_a_classifier_is_repaired_as_well() -> None:
    model = bert()
    section = ReconstructionSection(layer_epochs=4, learning_rate=0.01)
    sparsified = sparsify(model, text(), method="alps", pattern=Unstructured(0.5), reconstruction=section)
    assert all(error.tuned < error.pruned for error in sparsified.errors)


def test_a_recipe_asks_for_it_and_the_report_tells_what_it_brought(tmp_path: Path) -> None:
    section = {"swaps": 2, "matrix_steps": 5, "layer_epochs": 2}
    recipe = tiny_recipe(tmp_path, sparsity={"method": "sparsegpt", "reconstruction": section}, train={"steps": 1})
    run_recipe(recipe, tmp_path / "run")
    run = Run(tmp_path / "run")
    report = read_document(run.sparse / SPARSITY_FILE, SparsityReport, schema="shearling.sparsity/1")
    assert report.errors is not None
    assert all(error.tuned < error.pruned for error in report.errors)
    check_masked_zeros(load_model(run.sparse), load_masks(run.sparse / MASK_FILE))


def test_without_text_it_is_refused() -> None:
    with pytest.raises(RecipeInvalid, match="needs calibration text"):
        sparsify(
            FAMILIES["llama"](),
            [],
            method="magnitude",
            pattern=Unstructured(0.5),
            reconstruction=ReconstructionSection(),
        )


def test_swaps_are_refused_where_a_pattern_does_not_say_what_competes() -> None:
    class Silent:
        name, ratio = "silent", 0.5

        def misfit(self, row: int) -> str | None:
            return None

        def keep(self, scores: Tensor) -> Tensor:
            return Unstructured(0.5).keep(scores)

    with pytest.raises(ModelUnsupported, match="does not say among which"):
        sparsify(
            FAMILIES["llama"](),
            text(2),
            method="wanda",
            pattern=Silent(),
            reconstruction=ReconstructionSection(swaps=1),
        )


def test_swaps_that_leave_the_pattern_are_refused() -> None:
    """The pattern is 2:4, and says that a whole row competes."""

    class Loose:
        name, ratio, block = "loose", 0.5, None

        def misfit(self, row: int) -> str | None:
            return None

        def keep(self, scores: Tensor) -> Tensor:
            return SemiStructured(2, 4).keep(scores)

    with pytest.raises(ShearlingError, match="does not keep to the pattern loose"):
        repaired("wanda", ReconstructionSection(swaps=5), pattern=Loose())
