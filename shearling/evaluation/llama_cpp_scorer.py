"""Log-likelihoods of a GGUF file by llama.cpp, which may be installed in an environment of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shearling.evaluation.causal_scorer import CausalScorer
from shearling.evaluation.llama_cpp_process import LlamaCppProcess


class LlamaCppScorer(CausalScorer):
    """A GGUF file on the CPU.

    Args:
        process: llama.cpp with the file.
        tokenizer: of the file, as a Hugging Face one; its `model_max_length` is the longest input.
        batch_size: most rows of a batch; llama.cpp itself takes no more than `most_rows`.
        on_rows: called with the number of rows after each batch.
    """

    def __init__(
        self,
        process: LlamaCppProcess,
        tokenizer: Any,
        *,
        batch_size: int = 64,
        on_rows: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(
            tokenizer,
            max_length=tokenizer.model_max_length,
            batch_size=min(batch_size, process.most_rows),
            on_rows=on_rows,
        )
        self._process = process

    def logits(self, input_ids: Tensor, first: int) -> Tensor:
        """See `CausalScorer.logits`."""
        rows, length = input_ids.shape
        # The padding on the right is read as well; rows of a batch are of like length.
        logits = self._process.read(input_ids.tolist(), [length - first] * rows, fresh=True)
        return torch.from_numpy(logits).view(rows, length - first, -1)

    def step(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, fresh: bool) -> Tensor:
        """See `CausalScorer.step`; positions are counted by the process, which reads no padding."""
        new = attention_mask[:, -input_ids.shape[1] :].bool()
        rows = [tokens[read].tolist() for tokens, read in zip(input_ids, new, strict=True)]
        return torch.from_numpy(self._process.read(rows, [1] * len(rows), fresh=fresh))
