"""Hidden states of the calibration text, carried from one transformer layer to the next.

A layer is called with exactly the arguments that the model itself would give it: they are recorded, for every layer,
during one ordinary forward of each batch. So rotary embeddings, sliding windows, ALiBi and masks are right for any
transformer, and no sample needs padding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shearling.errors import ModelUnsupported

if TYPE_CHECKING:
    from torch import Tensor, nn

    from shearling.model.layers import TransformerLayers


@dataclass
class LayerCall:
    """The arguments of one layer besides its hidden states."""

    positional: tuple[Any, ...]
    named: dict[str, Any]


@dataclass
class Batch:
    """Samples of equal length.

    Attributes:
        hidden: [batch, tokens, width], the inputs of the layer that is next.
        calls: one for each layer.
    """

    hidden: Tensor
    calls: list[LayerCall]


@dataclass
class Propagation:
    """All batches of the calibration text, standing before the same layer."""

    batches: list[Batch]
    next_layer: int = 0

    def fork(self) -> Propagation:
        """Another propagation of the same text that stands at the same place, and moves on by itself."""
        return Propagation([Batch(batch.hidden, batch.calls) for batch in self.batches], self.next_layer)

    def output(self, layer: nn.Module, index: int) -> Tensor:
        """Run the next layer on one batch, without moving on; gives its outputs [batch, tokens, width]."""
        batch = self.batches[index]
        call = batch.calls[self.next_layer]
        # A copy, since a layer may add its residuals in place.
        output = layer(batch.hidden.clone(), *call.positional, **call.named)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def forward(self, layer: nn.Module) -> Iterator[Tensor]:
        """Run the next layer on every batch, without moving on; yields its outputs [batch, tokens, width]."""
        import torch

        for index in range(len(self.batches)):
            with torch.no_grad():
                output = self.output(layer, index)
            yield output

    def watch(self, layer: nn.Module, watchers: Iterable[tuple[nn.Module, Callable[[Tensor], None]]]) -> None:
        """Run the next layer on every batch, and show what enters some of its modules; one pass serves them all."""

        def show_to(watcher: Callable[[Tensor], None]) -> Any:
            return lambda _module, inputs, _output: watcher(inputs[0])

        with ExitStack() as hooks:
            for module, watcher in watchers:
                hooks.enter_context(module.register_forward_hook(show_to(watcher)))
            for _ in self.forward(layer):
                pass

    def advance(self, layer: nn.Module) -> None:
        """Replace the hidden states by the outputs of the next layer."""
        for batch, output in zip(self.batches, self.forward(layer), strict=True):
            batch.hidden = output
        self.next_layer += 1

    def advance_to(self, outputs: Sequence[Tensor]) -> None:
        """Replace the hidden states by outputs of the next layer that are known."""
        for batch, output in zip(self.batches, outputs, strict=True):
            batch.hidden = output
        self.next_layer += 1


@dataclass
class _Pool:
    """Equal tensors kept once: masks and rotary tables are the same for every sample of a length."""

    tensors: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)

    def intern(self, value: Any) -> Any:
        import torch

        if isinstance(value, torch.Tensor):
            raw: Any = value.detach().contiguous().cpu().flatten().view(torch.uint8).numpy()
            key = (value.dtype, value.shape, value.device, hashlib.sha256(raw).digest())
            return self.tensors.setdefault(key, value.detach())
        if isinstance(value, tuple | list):
            return type(value)(self.intern(inner) for inner in value)
        if isinstance(value, dict):
            return {key: self.intern(inner) for key, inner in value.items()}
        return value


def capture(
    model: nn.Module, transformer: TransformerLayers, calibration: Sequence[Tensor], *, batch_size: int = 1
) -> Propagation:
    """Record what every layer is called with, and the inputs of layer 0.

    Args:
        model: in eval mode; one dense forward is run for each batch.
        transformer: its layers.
        calibration: token ids [tokens] each; lengths may differ.
        batch_size: at most so many consecutive samples of equal length run together.

    Raises:
        ModelUnsupported: a layer is not called exactly once in a forward, or gets no hidden states.
    """
    pool = _Pool()
    return Propagation([_capture_batch(model, transformer, tokens, pool) for tokens in _stack(calibration, batch_size)])


def _capture_batch(model: nn.Module, transformer: TransformerLayers, tokens: Tensor, pool: _Pool) -> Batch:
    import torch

    seen: list[tuple[Tensor | None, LayerCall]] = []

    def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = dict(kwargs)
        hidden = args[0] if args else named.pop("hidden_states", None)
        # Only the first layer's inputs are needed: later ones come from pruned layers.
        seen.append(
            (
                hidden.detach().clone() if not seen and hidden is not None else None,
                LayerCall(pool.intern(args[1:]), pool.intern(named)),
            )
        )

    with ExitStack() as hooks, torch.no_grad():
        for layer in transformer.layers:
            hooks.enter_context(layer.register_forward_pre_hook(record, with_kwargs=True))
        model(input_ids=tokens.to(next(model.parameters()).device), use_cache=False)
    if len(seen) != len(transformer.layers) or seen[0][0] is None:
        raise ModelUnsupported(
            f"{len(seen)} layer calls in one forward of {len(transformer.layers)} layers", where=type(model).__name__
        )
    return Batch(seen[0][0], [call for _, call in seen])


def _stack(calibration: Sequence[Tensor], batch_size: int) -> Iterator[Tensor]:
    import torch

    pending: list[Tensor] = []
    for sample in calibration:
        if pending and (len(pending) == batch_size or len(sample) != len(pending[0])):
            yield torch.stack(pending)
            pending = []
        pending.append(sample)
    if pending:
        yield torch.stack(pending)
