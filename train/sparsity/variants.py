"""The `variants` artefact: the pruned model's layers with more zeros, one ratio after the other.

Each is pruned from the one before it by the method of the recipe, on the same calibration text, layer by layer as the
first was: beside one layer the weights stay on disk. A weight that was pruned stays pruned, so that the masks are
nested, and a layer that has as many zeros as a ratio asks for stays as it is. What healing does to the first is not
done again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling.artefact import Artefact, open_artefact, write_artefact
from shearling.calibration.propagation import IN_MEMORY
from shearling.console import log
from shearling.elastic.mask import MASK_FILE, Masks, PackedMasks, count_pruned, load_masks, save_masks
from shearling.elastic.variants import VARIANTS_FILE, Variant, VariantsDocument, variant_directory
from shearling.errors import RecipeInvalid
from shearling.model.checkpoint import load_model
from shearling.model.layers import TransformerLayers, find_layers
from shearling.model.skeleton import Skeleton, check_finite_tensor, open_skeleton
from shearling.model.weight_shards import StoredTensor, StoredWeights, WeightWriter, writing_weights
from shearling.recipe.sparsity import SparsitySection
from shearling.recipe.variants import VariantsSection
from shearling.strict_json import write_document
from train.sparsity.artefact import BATCH_SIZE
from train.sparsity.pattern import Pattern, make_pattern
from train.sparsity.sparsify import sparsify

if TYPE_CHECKING:
    from torch import Tensor


def write_variants(
    sparse: Artefact,
    destination: Path,
    *,
    section: VariantsSection,
    sparsity: SparsitySection,
    calibration: Sequence[Tensor],
    seed: int,
    force: bool = False,
) -> Artefact:
    """Prune the layers of a `sparse` artefact further.

    Args:
        sparse: verified.
        destination: where the artefact will stand.
        section: [variants] of the recipe.
        sparsity: [sparsity] of the recipe: method, pattern and reconstruction.
        calibration: token ids [tokens] of each sample; unused by methods that need none.
        seed: of the order of the batches, where layers are tuned.
        force: replace an artefact that is already there.

    Raises:
        RecipeInvalid: no layer can take the lowest ratio, or the method brings weights back.
        ArtefactError: the model cannot be pruned so; see `train.sparsity.sparsify`.
        OutputExists, OutputLocked, ResourceExhausted: the destination cannot be written.
    """
    skeleton = open_skeleton(sparse.path)
    if skeleton is not None and not skeleton.layers_stand_alone:
        skeleton = None
    model = load_model(sparse.path) if skeleton is None else skeleton.model
    transformer = find_layers(model)
    before, masks = sparse.path, load_masks(sparse.path / MASK_FILE)
    trained = _layer_shares(transformer, masks)
    if section.percents[0] <= round(100 * min(trained)):
        raise RecipeInvalid(
            f"no layer can take {section.ratios[0]:g}: the fewest zeros that one was trained with are "
            f"{min(trained):.0%}",
            where="variants.ratios",
            remedy="Give ratios above that of [sparsity]",
        )
    with write_artefact(destination, kind="variants", parents={"sparse": sparse}, seed=seed, force=force) as draft:
        made = []
        for percent in section.percents:
            log.print(f"layers with {percent} % zeros")
            directory = variant_directory(draft.directory, percent)
            directory.mkdir()
            stored = StoredWeights(sparse.path).tensors
            names = [f"{path}.weight" for path in transformer.linears()]
            with writing_weights(directory, {name: stored[name] for name in names}) as writer:
                layers = _NestedLayers(skeleton, transformer, StoredWeights(before), masks, writer)
                sparsify(
                    model,
                    calibration,
                    method=sparsity.method,
                    pattern=_patterns(sparsity, percent, _layer_shares(transformer, masks)),
                    reconstruction=sparsity.reconstruction,
                    seed=seed,
                    batch_size=BATCH_SIZE,
                    residence=layers,
                    done=layers.done,
                )
            save_masks(directory / MASK_FILE, layers.masks)
            before, masks = directory, layers.masks
            shares, zeros = _layer_shares(transformer, masks), sum(count_pruned(masks).values())
            made.append(Variant(percent=percent, layers=shares, zeros=zeros))
        document = VariantsDocument(
            method=sparsity.method, modules=tuple(transformer.linear_names), trained=trained, variants=tuple(made)
        )
        write_document(draft.directory / VARIANTS_FILE, document)
        draft.details |= variants_inputs(section)
    return open_artefact(destination, kind="variants")


def variants_inputs(section: VariantsSection) -> dict[str, Any]:
    """What decides the variants, beside the pruned model."""
    return {"ratios": list(section.ratios)}


def _patterns(sparsity: SparsitySection, percent: int, shares: Sequence[float]) -> list[Pattern | None]:
    """The pattern of each layer, which leaves it more zeros than it has; None where it has as many already."""
    pattern = make_pattern(sparsity.pattern, ratio=percent / 100)
    return [pattern if percent > round(100 * share) else None for share in shares]


def _layer_shares(transformer: TransformerLayers, masks: Masks) -> tuple[float, ...]:
    shares = []
    for index in range(len(transformer.layers)):
        found = [masks[path] for path in transformer.linears_of(index)]
        kept = sum(int(mask.count_nonzero()) for mask in found)
        shares.append(1 - kept / sum(mask.numel() for mask in found))
    return tuple(shares)


class _NestedLayers:
    """Where `sparsify` finds the layers of a variant, and where it leaves those of the next.

    Args:
        skeleton: of the first pruned model; None where the whole model is in memory, as the last variant left it.
        transformer: its layers.
        before: weights of the variant that is pruned further.
        masks: of that variant.
        writer: of the next one.
    """

    def __init__(
        self,
        skeleton: Skeleton | None,
        transformer: TransformerLayers,
        before: StoredWeights,
        masks: Masks,
        writer: WeightWriter,
    ) -> None:
        self.masks = PackedMasks()
        self._skeleton, self._transformer, self._before = skeleton, transformer, before
        self._masks, self._writer = masks, writer

    def layer(self, index: int) -> AbstractContextManager[Any]:
        """See `Residence`."""
        return IN_MEMORY.layer(index) if self._skeleton is None else self._filled(self._skeleton, index)

    @contextmanager
    def _filled(self, skeleton: Skeleton, index: int) -> Iterator[None]:
        import torch

        with skeleton.filled(self._transformer.module_path(index, "").rstrip("."), torch.float32):
            with torch.no_grad():
                for path, linear in self._transformer.linears_of(index).items():
                    linear.weight.copy_(self._before.read(f"{path}.weight"))
            yield

    def around(self) -> AbstractContextManager[Any]:
        """See `Residence`."""
        import torch

        return nullcontext() if self._skeleton is None else self._skeleton.filled_around_layers(torch.float32)

    def done(self, index: int, masks: Mapping[str, Tensor]) -> None:
        """Write the linears of a layer, those that stayed as they are with the mask that they have.

        Raises:
            RecipeInvalid: a weight is there again that was pruned before.
        """
        for path, linear in self._transformer.linears_of(index).items():
            earlier, weight = self._masks[path], linear.weight.detach()
            revived = int(((weight != 0) & ~earlier.to(weight.device)).count_nonzero())
            if revived:
                raise RecipeInvalid(
                    f"the method or its reconstruction brings {revived} pruned weights of {path} back, and an adapter "
                    "that was trained under the mask has never seen them",
                    where="variants",
                    remedy='Use method = "wanda" or "magnitude" in [sparsity], without swaps',
                )
            name = f"{path}.weight"
            described: StoredTensor = self._writer.tensors[name]
            stored = weight.to(described.torch_dtype)
            check_finite_tensor(stored, where=name)
            self._writer.write(name, stored)
            self.masks.add({path: masks[path].cpu() & earlier if path in masks else earlier})
