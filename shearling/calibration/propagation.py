"""Hidden states of the calibration text, carried from one transformer layer to the next.

A layer is called with exactly the arguments that the model itself would give it: they are recorded, for every layer,
during one forward of each batch in which the layers themselves do nothing, and which ends before the head. So rotary
embeddings, sliding windows, ALiBi and masks are right for any transformer, no sample needs padding, and no layer but
the first need be in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from shearling.errors import ModelUnsupported

if TYPE_CHECKING:
    from torch import Tensor, nn

    from shearling.model.layers import TransformerLayers


class Residence(Protocol):
    """Brings parts of a model into memory, for as long as they are needed."""

    def layer(self, index: int) -> AbstractContextManager[Any]:
        """One transformer layer."""
        ...

    def around(self) -> AbstractContextManager[Any]:
        """All but the transformer layers and a head of its own."""
        ...


class WholeModel:
    """Residence of a model that is in memory."""

    def layer(self, _index: int) -> AbstractContextManager[Any]:
        """It is there."""
        return nullcontext()

    def around(self) -> AbstractContextManager[Any]:
        """It is there."""
        return nullcontext()


IN_MEMORY = WholeModel()


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
    model: nn.Module,
    transformer: TransformerLayers,
    calibration: Sequence[Tensor],
    *,
    batch_size: int = 1,
    residence: Residence = IN_MEMORY,
) -> Propagation:
    """Record what every layer is called with, and the inputs of layer 0.

    Args:
        model: in eval mode.
        transformer: its layers.
        calibration: token ids [tokens] each; lengths may differ.
        batch_size: at most so many consecutive samples of equal length run together.
        residence: brings what is needed into memory.

    Raises:
        ModelUnsupported: a layer is not called exactly once in a forward, or gets no hidden states.
    """
    recorder = _Recorder(transformer)
    with residence.around(), residence.layer(0), recorder.listening():
        batches = [recorder.record(model, tokens) for tokens in _stack(calibration, batch_size)]
    return Propagation(batches)


class _Recorder:
    """Stands in for the layers: notes what they are called with, and hands their inputs on."""

    def __init__(self, transformer: TransformerLayers) -> None:
        self._layers = transformer.layers
        self._pool = _Pool()
        self._calls: list[LayerCall] = []
        self._hidden: Tensor | None = None
        self._beside: tuple[Any, ...] | None = None
        """What a layer returns behind its hidden states; None before the first was run, or where it returns no tuple.
        """
        self._form_known = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """The layers are replaced."""
        originals = [layer.forward for layer in self._layers]
        replaced = [layer.__dict__.get("forward") for layer in self._layers]
        try:
            for layer, original in zip(self._layers, originals, strict=True):
                layer.forward = partial(self._note, original)
            yield
        finally:
            for layer, before in zip(self._layers, replaced, strict=True):
                del layer.forward
                if before is not None:
                    layer.forward = before

    def record(self, model: nn.Module, tokens: Tensor) -> Batch:
        """One batch [batch, tokens]."""
        import torch

        self._begin()
        # The body alone: a head would make logits, gigabytes with a large vocabulary.
        body: Any = getattr(model, "base_model", model)
        device = next(parameter.device for parameter in model.parameters() if not parameter.is_meta)
        with torch.no_grad():
            body(input_ids=tokens.to(device), use_cache=False)
        if len(self._calls) != len(self._layers) or self._hidden is None:
            raise ModelUnsupported(
                f"{len(self._calls)} layer calls in one forward of {len(self._layers)} layers",
                where=type(model).__name__,
            )
        return Batch(self._hidden, self._calls)

    def _begin(self) -> None:
        self._calls, self._hidden = [], None

    def _note(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        named = dict(kwargs)
        hidden = args[0] if args else named.pop("hidden_states", None)
        # Only the first layer's inputs are needed: later ones come from pruned layers.
        if not self._calls and hidden is not None:
            self._hidden = hidden.detach().clone()
        self._calls.append(LayerCall(self._pool.intern(args[1:]), self._pool.intern(named)))
        if not self._form_known:
            # Once, the first layer is run: whether it returns a tuple, nothing else tells.
            output = original(*args, **kwargs)
            self._beside, self._form_known = output[1:] if isinstance(output, tuple) else None, True
        return hidden if self._beside is None else (hidden, *self._beside)


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
