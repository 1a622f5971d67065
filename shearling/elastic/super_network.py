"""The weight-sharing super-network: a frozen model whose adapters and widths can be cut to any choice of the search
space.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling.artefact import Artefact, open_artefact
from shearling.elastic.grid_file import GRID_FILE, WeightGrids, apply_grids, load_grids
from shearling.elastic.mask import MASK_FILE, Masks, PackedMasks, check_masked_zeros, load_masks
from shearling.elastic.mixture import LayerVariants
from shearling.elastic.reordering import REORDERING_FILE, apply_reordering, load_reordering
from shearling.elastic.search_space import SEARCH_SPACE_FILE, Choice, Group, SearchSpace, read_search_space
from shearling.errors import ArtefactCorrupt, ArtefactMismatch, ArtefactMissing, NonFiniteWeights, ShapeMismatch
from shearling.model.checkpoint import load_model, load_tokenizer
from shearling.model.head import head_parameters
from shearling.model.narrow_layers import Cut
from shearling.run import Run, open_frozen

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.nn import Parameter
    from transformers import PreTrainedModel

    from shearling.elastic.elastic_linear import ElasticLinear
    from shearling.elastic.elastic_lora import ElasticLoraLinear
    from shearling.quantization.rounding import Rounded

ADAPTER_FILE = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."


@dataclass
class SuperNetwork:
    """A model with elastic adapters in place.

    Attributes:
        model: the Hugging Face model; its adapted linears are `ElasticLoraLinear`.
        tokenizer: belongs to it; None where nothing is tokenised.
        space: the search space.
        layers: the adapted layers by module path.
        unadapted: layers without an adapter that produce or consume an elastic width.
        masks: of the pruned modules, in the order of this model's channels; None where nothing was pruned.
        grids: of the linear layers, where the weights are trained on a grid of integers.
        variants: of the layers, where their shares of zeros are chosen.
        head: what a classifier has beyond its pretrained body; it trains with the adapters, and is stored with them.
    """

    model: nn.Module
    tokenizer: Any
    space: SearchSpace
    layers: dict[str, ElasticLoraLinear]
    unadapted: dict[str, ElasticLinear] = field(default_factory=dict)
    masks: Masks | None = None
    grids: WeightGrids | None = None
    head: dict[str, Parameter] = field(default_factory=dict)
    variants: LayerVariants | None = None

    def activate(self, choice: Choice, *, space: SearchSpace | None = None) -> None:
        """Make one sub-network the model.

        Args:
            choice: which one.
            space: of which it is one; absent: the network's own. A training may draw ranks beside those of the lists.

        Raises:
            DocumentInvalid: the choice is incomplete or outside the space; nothing has changed then.
        """
        space = self.space if space is None else space
        for path, rank in space.ranks(choice).items():
            self.layers[path].activate(rank)
        for path, cut in space.cuts(choice).items():
            self.elastic(path).cut(out_features=cut.out_features, in_features=cut.in_features)
        for path, percent in space.percents(choice).items():
            if self.elastic(path).percent != percent:
                self.elastic(path).take(
                    self.weight_at(path, percent), percent=percent, mask=self.mask_at(path, percent)
                )
        for path, bits in space.bits(choice).items():
            self.elastic(path).round_to(bits)

    def elastic(self, path: str) -> ElasticLoraLinear | ElasticLinear:
        """The layer at a path."""
        return self.layers.get(path) or self.unadapted[path]

    def weight_at(self, path: str, percent: int) -> Tensor:
        """[out, in], the frozen weight of a linear layer at a share of zeros, at full width; where it has no choice, as
        it is.
        """
        if self.variants is not None and self.variants.offers(path):
            return self.variants.weight(path, percent)
        layer: Any = self.model.get_submodule(path)
        weight: Tensor = layer.weight
        return weight.detach()

    def mask_at(self, path: str, percent: int) -> Tensor | None:
        """[out, in] bool, at full width, of a pruned layer at a share of zeros; where it has no choice, as it was
        trained.
        """
        if self.variants is not None and self.variants.offers(path):
            return self.variants.mask(path, percent)
        return None if self.masks is None else self.masks[path]

    def masks_of(self, choice: Choice) -> Masks | None:
        """The masks of the frozen weights of a sub-network, at full width; None where nothing was pruned."""
        percents = self.space.percents(choice)
        if self.masks is None or not percents:
            return self.masks
        chosen = PackedMasks()
        for path, mask in self.masks.items():
            found = self.mask_at(path, percents[path]) if path in percents else mask
            chosen.add({path: mask if found is None else found})
        return chosen

    def integers(self) -> Iterator[tuple[str, Rounded]]:
        """What the weights in use are rounded to, module after module, where layers chose their number format."""
        for path in (*self.layers, *self.unadapted):
            rounded = self.elastic(path).integers()
            if rounded is not None:
                yield path, rounded

    @contextmanager
    def materialised(self) -> Iterator[None]:
        """Hold the weights of the active sub-network in one piece while many batches are evaluated (merged, in the
        masked form).
        """
        try:
            self._hold(hold=True)
            yield
        finally:
            self._hold(hold=False)

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Leave the adapters out: the frozen model, at the active widths."""
        try:
            self._adapt(adapts=False)
            yield
        finally:
            self._adapt(adapts=True)

    def _adapt(self, *, adapts: bool) -> None:
        for layer in self.layers.values():
            layer.adapts = adapts

    def _hold(self, *, hold: bool) -> None:
        for layer in self.layers.values():
            layer.hold_merged(hold=hold)
        for plain in self.unadapted.values():
            plain.hold(hold=hold)

    def adapter_params(self, choice: Choice) -> int:
        """Adapter weights of a sub-network: sum of r (in + out) over its modules, at their active widths."""
        cuts, total = self.space.cuts(choice), 0
        for path, rank in self.space.ranks(choice).items():
            layer, cut = self.layers[path], cuts.get(path, Cut())
            total += rank * ((cut.in_features or layer.in_features) + (cut.out_features or layer.out_features))
        return total

    def adapter_state(self) -> dict[str, Tensor]:
        """The super-adapter's tensors under the names that PEFT gives them."""
        state = {}
        for path, layer in self.layers.items():
            state[f"{PEFT_PREFIX}{path}.lora_A.weight"] = layer.lora_a.detach().contiguous()
            state[f"{PEFT_PREFIX}{path}.lora_B.weight"] = layer.lora_b.detach().contiguous()
        return state | {f"{PEFT_PREFIX}{name}": parameter.detach() for name, parameter in self.head.items()}

    def load_adapter_state(self, state: dict[str, Tensor], *, where: Path) -> None:
        """Fill the adapters with stored tensors.

        Raises:
            ArtefactMismatch: a tensor is missing or left over.
            ShapeMismatch: a tensor has another shape.
            NonFiniteWeights: a tensor holds NaN or infinity.
        """
        import torch

        targets = self.adapter_state()
        if targets.keys() != state.keys():
            name = sorted(targets.keys() ^ state.keys())[0]
            raise ArtefactMismatch(
                f"tensor {name} is {'missing' if name in targets else 'not in the search space'}", where=where
            )
        for name, target in targets.items():
            if state[name].shape != target.shape:
                raise ShapeMismatch(f"{name} is {list(state[name].shape)}, expected {list(target.shape)}", where=where)
            if not torch.isfinite(state[name]).all():
                raise NonFiniteWeights("holds NaN or infinity", where=f"{where}: {name}")
            target.copy_(state[name])


def build_super_network(
    model: nn.Module,
    tokenizer: Any,
    space: SearchSpace,
    masks: Masks | None,
    *,
    grids: WeightGrids | None = None,
    generator: torch.Generator | None = None,
    lean: bool = False,
) -> SuperNetwork:
    """Put elastic adapters into a frozen model, in place.

    Args:
        model: a decoder or a classifier; all of its parameters but a classifier's head are frozen.
        tokenizer: kept beside it.
        space: names the modules and the ranks.
        masks: module path -> mask; needed where `space.adapter.masked_training`.
        grids: of its linear layers; needed where the space has a grid. Its frozen weights are put onto them.
        generator: draws the initial A matrices, module by module in group order.
        lean: see `ElasticLoraLinear`.

    Raises:
        ArtefactMismatch: the space names a module that is not a linear layer of this model, or one without a mask or a
            grid.
    """
    from shearling.elastic.elastic_linear import ElasticLinear
    from shearling.elastic.elastic_lora import ElasticLoraLinear
    from shearling.elastic.weight_grid import LayerGrid

    model.requires_grad_(False)
    masked = space.adapter.masked_training
    if (grids is None) != (space.adapter.grid is None):
        raise ArtefactMismatch("the search space and the super-adapter disagree on whether there is a grid")
    if grids is not None:
        adapted = {path for group in space.groups if group.kind == "rank" for path in group.modules}
        apply_grids(model, grids, trained=adapted if masked else ())
    modules = dict(model.named_modules())
    for group in space.width_groups:
        _check_widths(group, modules)
    layers: dict[str, ElasticLoraLinear] = {}
    for path in (path for group in space.groups if group.kind == "rank" for path in group.modules):
        base = _linear_at(modules, path)
        rounded = grids.matrices.get(path) if grids is not None and masked else None
        layers[path] = ElasticLoraLinear(
            base,
            r_max=space.adapter.r_max,
            scaling=space.scaling,
            scales_by_rank=space.scales_by_rank,
            mask=_mask_of(path, masks) if masked else None,
            grid=None if rounded is None else LayerGrid(rounded.scales, rounded.bits),
            dropout=space.adapter.dropout,
            generator=generator,
            lean=lean,
        )
        model.set_submodule(path, layers[path])
    others = dict.fromkeys(
        [*space.cuts(space.maximal()), *(path for group in space.mixed_groups for path in group.modules)]
    )
    unadapted = {path: ElasticLinear(_linear_at(modules, path)) for path in others if path not in layers}
    for path, plain in unadapted.items():
        model.set_submodule(path, plain)
    head = head_parameters(model)
    for parameter in head.values():
        parameter.requires_grad_(True)
    return SuperNetwork(model, tokenizer, space, layers, unadapted, masks, grids, head)


def _linear_at(modules: dict[str, nn.Module], path: str) -> nn.Linear:
    from torch import nn

    found = modules.get(path)
    if not isinstance(found, nn.Linear):
        raise ArtefactMismatch("the search space names a module that is not a linear layer of this model", where=path)
    return found


def _mask_of(path: str, masks: Masks | None) -> Tensor:
    if masks is None or path not in masks:
        raise ArtefactMismatch("masked training needs a mask for every adapted module", where=path)
    return masks[path]


def _check_widths(group: Group, modules: dict[str, nn.Module]) -> None:
    full = group.values[0]
    sizes = dict.fromkeys(group.modules, ("out_features", full))
    sizes |= dict.fromkeys(group.grouped, ("out_features", full // group.group))
    sizes |= dict.fromkeys(group.consumers, ("in_features", full))
    for path, (side, expected) in sizes.items():
        found = getattr(modules.get(path), side, None)
        if found != expected:
            raise ArtefactMismatch(f"{side} is {found}, the width group {group.id} says {expected}", where=path)


def load_super_network(run: Run) -> SuperNetwork:
    """Load the frozen model, the mask and the super-adapter of a finished training, verified, in float32 and eval mode.

    Raises:
        ArtefactError: anything in the run is missing, corrupt, or does not belong together.
    """
    adapter = open_artefact(run.super_adapter, kind="super_adapter")
    frozen = open_frozen(adapter)
    return assemble_super_network(frozen, adapter, read_search_space(adapter.path / SEARCH_SPACE_FILE))


def assemble_super_network(
    frozen: Artefact,
    adapter: Artefact,
    space: SearchSpace,
    *,
    lean: bool = False,
    model: PreTrainedModel | None = None,
    variants: Artefact | None = None,
) -> SuperNetwork:
    """`load_super_network` for artefacts that are verified already, and a search space that was read from them.

    Args:
        frozen: the model under the adapter.
        adapter: the `super_adapter`.
        space: of the adapter, or one that `shearling.elastic.mixture` made of it.
        lean: in less memory and more time, the same numbers; see `load_frozen`.
        model: the frozen model, where it is loaded already.
        variants: of the frozen model, where the space lets layers choose among them.
    """
    if model is None:
        model = load_frozen(frozen, lean=lean and GRID_FILE not in adapter.manifest.files)
    masks: Masks | None = load_masks(frozen.path / MASK_FILE) if frozen.manifest.kind == "sparse" else None
    if masks is not None:
        check_masked_zeros(model, masks)
    reordering = None
    if REORDERING_FILE in adapter.manifest.files:
        reordering = load_reordering(adapter.path / REORDERING_FILE, base=frozen.path)
        masks = apply_reordering(model, masks, space, reordering)
    grids = load_grids(adapter.path / GRID_FILE, base=frozen.path) if GRID_FILE in adapter.manifest.files else None
    network = build_super_network(model, load_tokenizer(frozen.path), space, masks, grids=grids, lean=lean)
    file = adapter.path / ADAPTER_FILE
    network.load_adapter_state(read_adapter_file(file), where=file)
    if variants is not None:
        network.variants = LayerVariants(frozen, variants, space, reordering)
    model.eval()
    return network


def load_frozen(frozen: Artefact, *, lean: bool) -> PreTrainedModel:
    """Load what adapters are put into, in eval mode.

    Args:
        frozen: a `base` or `sparse` artefact, verified.
        lean: keep linear layers and embeddings in the type that they are stored in, which computes the same; else
            everything is float32.
    """
    from shearling.model.stored_types import load_in_stored_types

    return load_in_stored_types(frozen.path) if lean else load_model(frozen.path)


def read_adapter_file(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        ArtefactMissing: no such file.
        ArtefactCorrupt: not a readable safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ArtefactMissing("no adapter here", where=path)
    try:
        state: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ArtefactCorrupt(f"not a readable safetensors file: {error}", where=path) from None
    return state
