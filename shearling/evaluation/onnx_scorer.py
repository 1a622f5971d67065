"""An exported ONNX decoder as lm-evaluation-harness sees it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shearling.errors import ModelUnsupported
from shearling.evaluation.causal_scorer import CausalScorer
from shearling.kernel.onnx_runtime_extension import PADDING
from shearling.kernel.runtime_refusal import refusals

PAST, PRESENT = "past_key_values.", "present."
TEXT_INPUTS = ("input_ids", "attention_mask", "position_ids")
CACHE_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxScorer(CausalScorer):
    """A decoder as `python -m export` writes it: its cache goes in and out, logits for every position.

    Args:
        session: an `onnxruntime.InferenceSession`.
        tokenizer: the Hugging Face tokenizer of the model.
        max_length: longest input, see `context_length`.
        batch_size: most rows of a batch.
        on_rows: called with the number of rows after each batch.

    Raises:
        ModelUnsupported: the model has an input that is not known here.
    """

    computes_all_logits = True

    def __init__(
        self,
        session: Any,
        tokenizer: Any,
        *,
        max_length: int,
        batch_size: int = 64,
        on_rows: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(tokenizer, max_length=max_length, batch_size=batch_size, on_rows=on_rows)
        self._session = session
        inputs = {item.name: item for item in session.get_inputs()}
        self._past = [item for name, item in inputs.items() if re.fullmatch(r"past_key_values\.\d+\.(key|value)", name)]
        self._text_inputs = [name for name in TEXT_INPUTS if name in inputs]
        unknown = sorted(inputs.keys() - {*TEXT_INPUTS, *(item.name for item in self._past)})
        odd = next((item for item in self._past if item.type not in CACHE_TYPES), None)
        if unknown or odd is not None:
            raise ModelUnsupported(
                f"the ONNX model has the input {unknown[0] if odd is None else odd.name!r}",
                remedy="Export a decoder with: python -m export --formats onnx",
            )
        self._padded_right = session.get_modelmeta().custom_metadata_map.get(PADDING) == "right"
        self._presents = [PRESENT + item.name.removeprefix(PAST) for item in self._past]
        self._cache: dict[str, Any] = {}

    def logits(self, input_ids: Tensor, first: int) -> Tensor:
        """See `CausalScorer.logits`."""
        rows, length = input_ids.shape
        positions = torch.arange(length).expand(rows, length).contiguous()
        (logits,) = self._run(["logits"], input_ids, torch.ones_like(input_ids), positions, self._empty(rows))
        return torch.from_numpy(logits[:, first:].astype("float32"))

    def step(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, fresh: bool) -> Tensor:
        """See `CausalScorer.step`."""
        cache = self._empty(len(input_ids)) if fresh else self._cache
        lengths = attention_mask.sum(dim=1)
        if fresh and self._padded_right:
            # Later steps need no change: of the mask such a graph takes the lengths alone.
            shifted = (torch.arange(input_ids.shape[1]) - lengths[:, None]) % input_ids.shape[1]
            input_ids, attention_mask = (values.gather(1, shifted) for values in (input_ids, attention_mask))
        logits, *present = self._run(["logits", *self._presents], input_ids, attention_mask, position_ids, cache)
        self._cache = {item.name: value for item, value in zip(self._past, present, strict=True)}
        last = lengths - 1 if fresh and self._padded_right else torch.full_like(lengths, -1)
        return torch.from_numpy(logits[np.arange(len(logits)), last.numpy()].astype("float32"))

    def _run(
        self,
        outputs: list[str],
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        cache: dict[str, Any],
    ) -> list[Any]:
        values = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        feed = {name: values[name].numpy() for name in self._text_inputs}
        with refusals():
            results: list[Any] = self._session.run(outputs, feed | cache)
        return results

    def _empty(self, rows: int) -> dict[str, Any]:
        """The cache of nothing: [rows, heads, 0, width], of which the model fixes heads and width."""
        return {
            item.name: np.zeros(
                [rows, *(size if isinstance(size, int) else 0 for size in item.shape[1:])], CACHE_TYPES[item.type]
            )
            for item in self._past
        }
