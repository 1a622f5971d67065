"""The weights of GGUF files as a source of base models, dequantized by transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shearling.errors import ArtefactCorrupt, ModelUnsupported
from shearling.model.gguf_header import GgufHeader

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_gguf_model(header: GgufHeader) -> PreTrainedModel:
    """Dequantize the weights into a float32 decoder of transformers.

    Raises:
        ModelUnsupported: transformers does not know the architecture.
        ArtefactCorrupt: the tensors do not fit it.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    architecture = header.require("general.architecture")
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            str(header.path.parent),
            gguf_file=header.path.name,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelUnsupported(
            f"transformers cannot read a GGUF of architecture {architecture!r}: {error}", where=header.path
        ) from error
    except RuntimeError as error:
        raise ArtefactCorrupt(f"the tensors do not fit the architecture: {error}", where=header.path) from error
    missing = sorted(str(name) for name in info.get("missing_keys") or ())
    if missing:
        raise ArtefactCorrupt(f"missing tensors: {', '.join(missing[:3])}", where=header.path)
    return model.eval()
