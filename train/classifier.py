"""Classifiers in training: a new head on a pretrained encoder, and rows with a class instead of a completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling.checkpoint import check_finite
from shearling.checkpoint_safety import check_checkpoint
from shearling.errors import ArtefactCorrupt, ModelUnsupported
from shearling.task import TaskRow
from train.tokenised_rows import PAD_MULTIPLE

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

INIT_STD = 0.02


def load_with_new_head(directory: Path, *, classes: Sequence[str], seed: int) -> PreTrainedModel:
    """Load a pretrained encoder and give it a classification head with seeded weights.

    Args:
        directory: a local Hugging Face model directory, cleaned.
        classes: names of the classes, in the order of their indices.
        seed: of the head's weights.

    Raises:
        ArtefactError: whatever `check_checkpoint` refuses.
        ModelUnsupported: transformers has no classifier of this architecture.
        ArtefactCorrupt: a weight of the encoder itself is missing.
    """
    import torch
    import transformers

    from shearling.architecture import head_parameters

    check_checkpoint(directory)
    transformers.utils.logging.disable_progress_bar()
    names = dict(enumerate(classes))
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    options = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    try:
        model, info = transformers.AutoModelForSequenceClassification.from_pretrained(str(directory), output_loading_info=True, **labels, **options)
    except ValueError as error:
        raise ModelUnsupported(f"no classifier of this architecture: {str(error).splitlines()[0]}", where=directory) from error
    model.config.architectures = [type(model).__name__]
    head = head_parameters(model)
    missing = sorted(set(info["missing_keys"]) - head.keys())
    if missing:
        raise ArtefactCorrupt(f"the encoder's weight {missing[0]} is missing", where=directory)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * INIT_STD if parameter.ndim > 1 else torch.zeros_like(parameter))
    check_finite(model)
    return model.eval()


def classified_rows(rows: Sequence[TaskRow], tokenizer: Any, *, max_length: int) -> list[dict[str, Any]]:
    """Encode prompts, each with the index of its class.

    Args:
        rows: of the train split; all have a gold choice.
        tokenizer: of the model; puts its own special tokens around the text.
        max_length: longer rows are cut at the end.

    Returns:
        Per row `input_ids` and `labels`, the latter an integer.
    """
    return [{"input_ids": tokenizer(row.prompt, truncation=True, max_length=max_length)["input_ids"], "labels": row.gold} for row in rows]


@dataclass(frozen=True)
class PadClassified:
    """Collate classified rows of different length into a batch, padded on the right to a multiple of eight."""

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask` [batch, length], and `labels` [batch], all int64."""
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        shape = (len(rows), -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE)
        input_ids, attention_mask = torch.full(shape, self.pad_token_id), torch.zeros(shape, dtype=torch.int64)
        for index, row in enumerate(rows):
            used = len(row["input_ids"])
            input_ids[index, :used] = torch.tensor(row["input_ids"])
            attention_mask[index, :used] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": torch.tensor([row["labels"] for row in rows])}
