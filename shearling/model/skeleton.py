"""A model whose weights stay on disk: its modules with parameters on the meta device, filled part by part.

What fits into memory a layer at a time need not fit as a whole. A skeleton is also the cheapest way to load all of a
model: tensor by tensor, each page of the file given back before the next is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling.errors import NonFiniteWeights
from shearling.model.checkpoint_safety import CONFIG, check_checkpoint
from shearling.model.configuration import UNFIT, open_configuration
from shearling.model.head import auto_class
from shearling.model.layers import TransformerLayers, find_layers
from shearling.model.mapped_pages import give_back_pages_of
from shearling.model.narrow_layers import read_layer_widths
from shearling.model.weight_shards import KEPT_DTYPES, Dtype, StoredTensor, StoredWeights, main_dtype

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel


_BLOCK = 2**22
"""Entries that are checked together."""


@dataclass(frozen=True)
class Skeleton:
    """A checkpoint and the modules that it belongs to.

    Attributes:
        model: in eval mode; its buffers that no file has are there, its weights are on the meta device.
        weights: of the checkpoint.
        places: name of a stored tensor -> every name that the model has for it, more than one where it is tied.
    """

    model: PreTrainedModel
    weights: StoredWeights
    places: dict[str, tuple[str, ...]]

    @property
    def transformer(self) -> TransformerLayers:
        """Its layers."""
        return find_layers(self.model)

    @property
    def keeps_float32(self) -> bool:
        """Whether transformers loads some of its modules in float32, whatever is asked for."""
        return bool(getattr(self.model, "_keep_in_fp32_modules_strict", None) or self.model._keep_in_fp32_modules)

    @property
    def layers_stand_alone(self) -> bool:
        """Whether no layer shares a tensor with another one, or with what is outside the layers."""
        inside = f"{self.transformer.layers_path}."
        return not any(
            len(names) > 1 and any(name.startswith(inside) for name in names) for names in self.places.values()
        )

    @property
    def dtype(self) -> Dtype:
        """See `main_dtype`."""
        return main_dtype(self.weights)

    def described(self, dtype: Dtype | None) -> dict[str, StoredTensor]:
        """What the tensors are when they are stored again, in the order of the model.

        Args:
            dtype: of all floating-point tensors; None keeps each as it is.
        """
        return {name: _stored_as(self.weights.tensors[name], dtype) for name in self.places}

    def fill(self, inside: Callable[[str], bool], dtype: torch.dtype | None) -> None:
        """Load what has a name that `inside` accepts.

        Args:
            inside: of a parameter's or a buffer's name.
            dtype: of floating-point tensors; None leaves them as they are stored.

        Raises:
            NonFiniteWeights: names the first tensor with NaN or infinity.
        """
        import torch

        for stored, names in self._chosen(inside):
            value = self.weights.read(stored)
            check_finite_tensor(value, where=stored)
            wanted = dtype if dtype is not None and value.is_floating_point() else value.dtype
            # Always a copy: the pages of the file are given back.
            value = torch.empty(value.shape, dtype=wanted).copy_(value)
            self._put(names, value)

    def map(self) -> None:
        """Put all weights in place as they are stored, as views of the files, which take memory as far as they are
        read.

        Raises:
            NonFiniteWeights: see `fill`.
        """
        for stored, names in self.places.items():
            value = self.weights.read(stored)
            check_finite_tensor(value, where=stored)
            give_back_pages_of(value)
            self._put(names, value)

    def empty(self, inside: Callable[[str], bool]) -> None:
        """Give back what `fill` loaded."""
        import torch

        for stored, names in self._chosen(inside):
            self._put(names, torch.empty(self.weights.tensors[stored].shape, device="meta"))

    @contextmanager
    def filled(self, path: str, dtype: torch.dtype | None) -> Iterator[nn.Module]:
        """One module in memory, for as long as it is needed.

        Args:
            path: of the module.
            dtype: as for `fill`.
        """
        yield from self._while_filled(lambda name: name.startswith(f"{path}."), dtype, path)

    @contextmanager
    def filled_around_layers(self, dtype: torch.dtype | None) -> Iterator[nn.Module]:
        """What is before and behind the transformer layers in memory, but for a head of its own."""
        layers, head = f"{self.transformer.layers_path}.", _head_path(self.model)

        def around(name: str) -> bool:
            return not name.startswith(layers) and (head is None or not name.startswith(f"{head}."))

        yield from self._while_filled(around, dtype, "")

    def _while_filled(self, inside: Callable[[str], bool], dtype: torch.dtype | None, path: str) -> Iterator[nn.Module]:
        self.fill(inside, dtype)
        try:
            yield self.model.get_submodule(path)
        finally:
            self.empty(inside)

    def _chosen(self, inside: Callable[[str], bool]) -> Iterator[tuple[str, tuple[str, ...]]]:
        # A tied tensor is where its first name is.
        return ((stored, names) for stored, names in self.places.items() if inside(names[0]))

    def _put(self, names: Sequence[str], value: torch.Tensor) -> None:
        import torch

        shared = torch.nn.Parameter(value, requires_grad=False)
        for name in names:
            path, _, leaf = name.rpartition(".")
            owner: Any = self.model.get_submodule(path)
            if leaf in owner._buffers:
                owner._buffers[leaf] = value
            else:
                owner._parameters[leaf] = shared


def open_skeleton(directory: Path) -> Skeleton | None:
    """The modules of a checkpoint, without its weights.

    Args:
        directory: a local Hugging Face model directory.

    Returns:
        None where tensors of the file are not one by one those of the model: what is stored under other names, fused or
        superfluous, or with layers of different widths, `load_model` has to load as a whole, or to refuse.

    Raises:
        ArtefactError: whatever `check_checkpoint` refuses.
    """
    import transformers
    from accelerate import init_empty_weights

    from shearling.model.plain_modules import make_plain

    check_checkpoint(directory)
    try:
        config = open_configuration(directory)
    except UNFIT:
        return None
    if read_layer_widths(config, where=directory / CONFIG) is not None:
        return None
    import torch

    try:
        # The buffers that no file has are computed as usual.
        with init_empty_weights(include_buffers=False):
            model = auto_class(config).from_config(config, dtype=torch.float32, trust_remote_code=False)
        if model.can_generate() and (directory / "generation_config.json").is_file():
            model.generation_config = transformers.GenerationConfig.from_pretrained(str(directory))
    except UNFIT:
        # A configuration that fits no model; who loads it says what is wrong.
        return None
    make_plain(model)
    model.tie_weights()
    weights = StoredWeights(directory)
    places = _places(model, weights)
    return None if places is None else Skeleton(model.eval().requires_grad_(False), weights, places)


def _stored_as(tensor: StoredTensor, dtype: Dtype | None) -> StoredTensor:
    if not tensor.torch_dtype.is_floating_point:
        return tensor
    kept = tensor.dtype if tensor.dtype in KEPT_DTYPES else "float32"
    return StoredTensor(dtype or kept, tensor.shape)


def check_finite_tensor(tensor: torch.Tensor, *, where: str) -> None:
    """Raise NonFiniteWeights, which names the tensor and says how many of its entries are NaN or infinite."""
    if not tensor.is_floating_point():
        return
    # Block by block: an embedding of 128k tokens would need gigabytes beside it.
    broken = sum(int((~block.isfinite()).sum()) for block in tensor.detach().flatten().split(_BLOCK))
    if broken:
        raise NonFiniteWeights(f"{broken} of {tensor.numel()} entries are NaN or infinite", where=where)


def _places(model: PreTrainedModel, weights: StoredWeights) -> dict[str, tuple[str, ...]] | None:
    state = model.state_dict(keep_vars=True)
    tied: dict[int, list[str]] = {}
    for name, tensor in state.items():
        tied.setdefault(id(tensor), []).append(name)
    places, left = {}, weights.tensors.keys() - _ignored(model, weights)
    for names in tied.values():
        stored = [name for name in names if name in weights.tensors]
        if not stored or weights.tensors[stored[0]].shape != tuple(state[names[0]].shape):
            return None
        if not _are_equal(weights, stored):
            return None
        places[stored[0]] = tuple(names)
        left = left - set(stored)
    return None if left else places


def _ignored(model: PreTrainedModel, weights: StoredWeights) -> set[str]:
    """What transformers passes over, such as tables that older versions stored."""
    patterns = [*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq$"]
    known = model.state_dict().keys()
    return {
        name for name in weights.tensors if name not in known and any(re.search(pattern, name) for pattern in patterns)
    }


def _are_equal(weights: StoredWeights, names: Sequence[str]) -> bool:
    """Whether a tied tensor that is stored under several names is the same under each."""
    import torch

    first, *others = names
    return all(
        weights.tensors[name] == weights.tensors[first] and torch.equal(weights.read(name), weights.read(first))
        for name in others
    )


def _head_path(model: PreTrainedModel) -> str | None:
    head = model.get_output_embeddings()
    if head is None or head.weight is model.get_input_embeddings().weight:
        return None
    return next(path for path, module in model.named_modules() if module is head)
