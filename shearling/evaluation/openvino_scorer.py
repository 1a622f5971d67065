"""An exported OpenVINO decoder as lm-evaluation-harness sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shearling.errors import ModelUnsupported
from shearling.evaluation.causal_scorer import CausalScorer
from shearling.kernel.runtime_refusal import refusals


class OpenVINOScorer(CausalScorer):
    """An OpenVINO decoder as `python -m export` writes it: stateful, logits for every position.

    Args:
        compiled: an `openvino.CompiledModel`, on any device and with any kernel extension that it needs.
        tokenizer: the Hugging Face tokenizer of the model.
        max_length: longest input, see `context_length`.
        batch_size: most rows of a batch.
        on_rows: called with the number of rows after each batch.

    Raises:
        ModelUnsupported: the model has an input that is not known here, such as an explicit cache.
    """

    computes_all_logits = True

    def __init__(
        self,
        compiled: Any,
        tokenizer: Any,
        *,
        max_length: int,
        batch_size: int = 64,
        on_rows: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(tokenizer, max_length=max_length, batch_size=batch_size, on_rows=on_rows)
        self._request = compiled.create_infer_request()
        self._inputs = {port.any_name for port in compiled.inputs}
        unknown = sorted(self._inputs - {"input_ids", "attention_mask", "position_ids", "beam_idx"})
        if unknown:
            raise ModelUnsupported(
                f"the OpenVINO model has the input {unknown[0]!r}", remedy="Export a stateful text-generation model"
            )

    def logits(self, input_ids: Tensor, first: int) -> Tensor:
        """See `CausalScorer.logits`."""
        rows, length = input_ids.shape
        positions = torch.arange(length).expand(rows, length).contiguous()
        logits = self._infer(input_ids, torch.ones_like(input_ids), positions, fresh=True)
        return torch.from_numpy(logits[:, first:].astype("float32"))

    def step(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, fresh: bool) -> Tensor:
        """See `CausalScorer.step`."""
        logits = self._infer(input_ids, attention_mask, position_ids, fresh=fresh)
        return torch.from_numpy(logits[:, -1].astype("float32"))

    def _infer(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *, fresh: bool) -> Any:
        values = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "beam_idx": torch.arange(len(input_ids), dtype=torch.int32),
        }
        feed = {name: values[name].numpy() for name in self._inputs}
        with refusals():
            if fresh:
                self._request.reset_state()
            return self._request.infer(feed)["logits"]
