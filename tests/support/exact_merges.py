"""Whether a merge computes what was trained, to the last bit."""

from pathlib import Path

import numpy as np

from export.verification.parity import fixed_blocks, torch_logits
from shearling.elastic.subnet import open_subnet
from shearling.elastic.super_network import assemble_super_network
from shearling.model.checkpoint import load_model
from shearling.model.head import Head
from tests.support.own_memory import in_own_memory


def merge_error(document: Path, merged: Path, *, head: Head = "language_model") -> float:
    """The largest difference between the logits of a super-network and of what was merged from it.

    Args:
        document: of the chosen sub-network.
        merged: the directory of the Hugging Face model.
        head: what the models are for.
    """
    opened = open_subnet(document)
    network = assemble_super_network(opened.frozen, opened.adapter, opened.space)
    network.activate(opened.subnet.choice)
    blocks = fixed_blocks(network.tokenizer, vocabulary=network.model.config.vocab_size)
    trained = torch_logits(in_own_memory(network.model), blocks, head=head)
    written = torch_logits(in_own_memory(load_model(merged)), blocks, head=head)
    return max(float(np.abs(one - other).max()) for one, other in zip(trained, written, strict=True))
