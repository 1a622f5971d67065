"""Configurations of Hugging Face directories, as complete as their models want them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


UNFIT = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    AssertionError,
    ArithmeticError,
)
"""What transformers and torch raise while they build a model from a configuration that fits none."""


def open_configuration(directory: Path, **changes: Any) -> PreTrainedConfig:
    """Read `config.json` of a local directory; code that it names is not run.

    Args:
        directory: a model's.
        changes: keys, instead of those of the file.

    Raises:
        OSError, or one of `UNFIT`: it is none that transformers knows.
    """
    from transformers import AutoConfig

    options = {"local_files_only": True, "trust_remote_code": False}
    return complete(AutoConfig.from_pretrained(str(directory), **options, **changes))


def complete(config: PreTrainedConfig) -> PreTrainedConfig:
    """Add what transformers 5 builds a model from and has for none of its families that leave it out: Phi, StableLM and
    classifiers on GPT-NeoX ask for `pad_token_id`, which their configurations have only where the file names it.
    """
    if not hasattr(config, "pad_token_id"):
        config.pad_token_id = None
    return config
