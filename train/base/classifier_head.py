"""A new classification head on a pretrained encoder."""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

from shearling.console import log
from shearling.errors import ArtefactCorrupt, ModelUnsupported
from shearling.model.checkpoint import check_finite
from shearling.model.checkpoint_safety import check_checkpoint
from shearling.model.configuration import UNFIT, open_configuration
from shearling.model.head import NEW_WEIGHTS, head_parameters
from shearling.model.token_ids import is_readable, readable_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

INIT_STD = 0.02
POOLER = "pooler"
"""What transformers calls the layer of a body that is read by a classifier alone."""


def load_with_new_head(directory: Path, *, classes: Sequence[str], seed: int) -> PreTrainedModel:
    """Load a pretrained encoder and give it a classification head with seeded weights.

    A pooler between the two that the checkpoint lacks, as one does that was saved with the head of pretraining, is a
    part of the new head.

    Args:
        directory: a local Hugging Face model directory, cleaned.
        classes: names of the classes, in the order of their indices.
        seed: of the head's weights.

    Returns:
        In eval mode; its configuration names what of the body is new.

    Raises:
        ArtefactError: whatever `check_checkpoint` refuses.
        ModelUnsupported: transformers has no classifier of this architecture.
        ArtefactCorrupt: a weight of the encoder itself is missing, or has another shape.
    """
    import torch
    import transformers

    check_checkpoint(directory, head="classifier")
    transformers.utils.logging.disable_progress_bar()
    names = dict(enumerate(classes))
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    options = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    try:
        # A head for another number of classes is replaced like any other.
        model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
            str(directory),
            config=open_configuration(directory, **labels),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    except ValueError as error:
        raise ModelUnsupported(
            f"no classifier of this architecture: {str(error).splitlines()[0]}", where=directory
        ) from error
    except UNFIT as error:
        raise ArtefactCorrupt(
            f"the checkpoint does not load: {type(error).__name__}: {error}", where=directory
        ) from error
    model.config.architectures = [type(model).__name__]
    # Of a head that is replaced: what it says of outputs, such as those of a regression, is not true of this one.
    model.config.problem_type = None
    missing = set(info["missing_keys"])
    _name_new_pooler(model, missing)
    head = head_parameters(model)
    mismatched = {name for name, *_ in info["mismatched_keys"]}
    for wrong, complaint in ((missing, "is missing"), (mismatched, "has another shape than config.json says")):
        if wrong - head.keys():
            raise ArtefactCorrupt(
                f"the encoder's weight {min(wrong - head.keys())} {complaint}",
                where=directory,
                remedy="Weights and config.json do not belong together",
            )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.values():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) * INIT_STD
                if parameter.ndim > 1
                else torch.zeros_like(parameter)
            )
    check_finite(model)
    return model.eval()


def _name_new_pooler(model: PreTrainedModel, missing: Set[str]) -> None:
    """Say in the configuration, which may be that of an export, what of the body the checkpoint does not have."""
    model.config.__dict__.pop(NEW_WEIGHTS, None)
    new = sorted(name for name in missing if name.startswith(f"{model.base_model_prefix}.{POOLER}."))
    if new:
        setattr(model.config, NEW_WEIGHTS, new)
        log.print("the checkpoint has no pooler: a new one is trained with the head")


def share_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a classifier and its tokenizer the same padding token: a decoder is read at the last token that is none.

    That of the configuration counts, which positions may depend on; else that of the tokenizer, else the end of text;
    each where the model has an embedding of it.

    Args:
        model: its configuration is changed.
        tokenizer: changed.

    Raises:
        ModelUnsupported: there is none of the three.
    """
    configured, count = model.config.pad_token_id, readable_ids(model)
    if is_readable(configured, min(count, len(tokenizer))):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(configured)
        return
    if not is_readable(tokenizer.pad_token_id, count):
        tokenizer.pad_token = tokenizer.eos_token
    if not is_readable(tokenizer.pad_token_id, count):
        raise ModelUnsupported(
            "a classifier reads rows of different length together, and there is no token to fill them up with",
            where=type(tokenizer).__name__,
            remedy=f"Set pad_token in tokenizer_config.json, to one of the {count} that the model has embeddings of",
        )
    model.config.pad_token_id = tokenizer.pad_token_id
