"""The weights of GGUF files as a source of base models, dequantized by transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shearling.errors import ArtefactCorrupt, ModelUnsupported
from shearling.model.gguf_config import ELSEWHERE, FREQUENCIES, read_gguf_config
from shearling.model.gguf_header import GgufHeader

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_gguf_model(header: GgufHeader) -> PreTrainedModel:
    """Dequantize the weights into a float32 decoder of transformers.

    Raises:
        ModelUnsupported: transformers does not know the architecture, or has no place for a tensor of the file.
        ArtefactCorrupt: the tensors do not fit it.
    """
    import torch
    import transformers

    from shearling.model.plain_modules import make_plain

    transformers.utils.logging.disable_progress_bar()
    config = read_gguf_config(header)
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            str(header.path.parent),
            config=config,
            gguf_file=header.path.name,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelUnsupported(
            f"transformers cannot read a GGUF of architecture {header.require('general.architecture')!r}: {error}",
            where=header.path,
            remedy=ELSEWHERE,
        ) from error
    except RuntimeError as error:
        raise ArtefactCorrupt(f"the tensors do not fit the architecture: {error}", where=header.path) from error
    for complaint in ("missing_keys", "mismatched_keys"):
        names = sorted(str(name) for name in info.get(complaint) or ())
        if names:
            raise ArtefactCorrupt(
                f"{complaint.removesuffix('_keys')} tensors: {', '.join(names[:3])}", where=header.path
            )
    _check_all_read(header, model)
    make_plain(model)
    return model.eval()


def _check_all_read(header: GgufHeader, model: Any) -> None:
    """Refuse a file with tensors that transformers passes over, such as biases that its configuration does not have."""
    from transformers import modeling_gguf_pytorch_utils as reader

    processor = reader.TENSOR_PROCESSORS.get(header.require("general.architecture"), reader.TensorProcessor)
    known = set(reader.get_gguf_hf_weights_map(model, processor(config=model.config.to_dict())))
    # A file may hold a head beside the embedding that it is tied to.
    known |= {FREQUENCIES, "output.weight"}
    unread = sorted(name for name in header.tensors if not {name, name.removesuffix(".weight")} & known)
    if unread:
        raise ModelUnsupported(
            f"transformers has no place for {len(unread)} of its tensors, the first is {unread[0]}",
            where=header.path,
            remedy=ELSEWHERE,
        )
