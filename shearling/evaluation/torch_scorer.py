"""A Hugging Face decoder, or a super-network, as lm-evaluation-harness sees it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from shearling.errors import ModelUnsupported
from shearling.evaluation.causal_scorer import MAX_BATCH_TOKENS, CausalScorer
from shearling.model.context_length import context_length


class TorchScorer(CausalScorer):
    """A Hugging Face decoder, or a super-network with one sub-network active.

    Args:
        model: in eval mode.
        tokenizer: of the model.
        batch_size: most rows of a batch.
        bf16: run all but the vocabulary projection in bfloat16 autocast; logits rounded to bfloat16 would tie choices.
        on_rows: called with the number of rows after each batch.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        batch_size: int,
        bf16: bool,
        on_rows: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(tokenizer, max_length=_max_length(model, tokenizer), batch_size=batch_size, on_rows=on_rows)
        self.model = model
        self.bf16 = bf16
        self._device = next(model.parameters()).device
        self.max_batch_tokens = MAX_BATCH_TOKENS.get(self._device.type, MAX_BATCH_TOKENS["cuda"])
        taken = inspect.signature(model.forward).parameters
        self._keeps_some, self._takes_positions = "logits_to_keep" in taken, "position_ids" in taken
        self._cache: Any = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._device

    def logits(self, input_ids: Tensor, first: int) -> Tensor:
        """See `CausalScorer.logits`."""
        kept = input_ids.shape[1] - first
        options = {"logits_to_keep": kept} if self._keeps_some else {}
        with self._arithmetic():
            output: Tensor = self.model(input_ids=input_ids.to(self._device), use_cache=False, **options).logits
        return output[:, -kept:].float().cpu()

    def logits_at(self, input_ids: Tensor, places: Tensor, positions: Tensor) -> Tensor:
        """See `CausalScorer.logits_at`."""
        length = input_ids.shape[1]
        options = {"logits_to_keep": length - int(positions.min())} if self._keeps_some else {}
        # From the end: that is where the positions are, whether or not the model has left out the first ones.
        at = (places.to(self._device), (positions - length).to(self._device))
        with self._arithmetic(at):
            output: Tensor = self.model(input_ids=input_ids.to(self._device), use_cache=False, **options).logits
        if output.shape[:-1] != (1, len(positions)):
            raise ModelUnsupported(
                f"{type(self.model).__name__} does not compute its logits by calling its output embedding, so they "
                "cannot be had of single positions"
            )
        return output[0].float().cpu()

    def step(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, fresh: bool) -> Tensor:
        """See `CausalScorer.step`."""
        options: dict[str, Any] = {"logits_to_keep": 1} if self._keeps_some else {}
        if self._takes_positions:
            options["position_ids"] = position_ids.to(self._device)
        with self._arithmetic():
            output = self.model(
                input_ids=input_ids.to(self._device),
                attention_mask=attention_mask.to(self._device),
                past_key_values=None if fresh else self._cache,
                use_cache=True,
                **options,
            )
        self._cache = output.past_key_values
        logits: Tensor = output.logits[:, -1].float().cpu()
        return logits

    @contextmanager
    def _arithmetic(self, at: tuple[Tensor, Tensor] | None = None) -> Iterator[None]:
        autocast = torch.autocast(self._device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext()
        head = _own_head(self.model, at, autocast=self.bf16) if self.bf16 or at is not None else nullcontext()
        with torch.inference_mode(), head, autocast:
            yield


def _max_length(model: nn.Module, tokenizer: Any) -> int:
    config: Any = model.config
    return context_length(config.to_dict(), tokenizer)


@contextmanager
def _own_head(model: nn.Module, at: tuple[Tensor, Tensor] | None, *, autocast: bool) -> Iterator[None]:
    """Keep the vocabulary projection out of autocast, and compute no more of it than is asked for.

    Args:
        model: a decoder.
        at: rows and positions of the hidden states [rows, positions, width]; the logits are [1, those, vocabulary]
            then. None asks for all of them.
        autocast: whether there is one. Else the type of what comes is right, whatever the weight's is by now: one that
            is widened for the time of its product alone is still as it is stored.
    """
    head = model.get_output_embeddings()  # type: ignore[operator] # every Hugging Face decoder has it
    original, own = head.forward, head.__dict__.get("forward")
    # A head that keeps its weight in another type widens it by itself, see `shearling.model.stored_types`.
    dtype = head.weight.dtype if own is None else torch.float32

    def forward(hidden: Tensor) -> Tensor:
        picked = hidden if at is None else hidden[at][None]
        with torch.autocast(hidden.device.type, enabled=False):
            result: Tensor = original(picked.to(dtype) if autocast else picked)
            return result

    head.forward = forward
    try:
        yield
    finally:
        del head.forward
        if own is not None:
            head.forward = own
