"""A Hugging Face directory: safetensors in the type of the frozen model, the configuration and the tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.formats.export_format import ExportSubject, FormatWriter, Storage, UsageFacts
from export.packing.packing_report import PackingReport
from export.verification.zeros import Zeros, read_huggingface
from shearling.hard_link import link_or_copy
from shearling.model.checkpoint import load_model, save_description, save_model
from shearling.model.checkpoint_safety import INDEX, weight_files

STOCK_USAGE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("model")
tokenizer = AutoTokenizer.from_pretrained("model")"""

SEPARATE_USAGE = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "adapter")"""

FROZEN_USAGE = """\
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("base")  # without the ranks, which were not exported as peft"""

OUR_USAGE = """\
from pathlib import Path

from shearling.model.checkpoint import load_model

model = load_model(Path("model"))"""


def take_weights(source: Path, directory: Path, *, link: bool) -> None:
    """Put the weights of another checkpoint into a directory.

    Args:
        source: holds safetensors files.
        directory: gets them.
        link: share them where the file system can, since the source is given up.
    """
    for file in (*weight_files(source), source / INDEX):
        if file.is_file():
            (link_or_copy if link else shutil.copyfile)(file, directory / file.name)


def _dtype_of(model: Any) -> Any:
    return str(model.dtype).removeprefix("torch.")


class HuggingFaceDecoder(FormatWriter):
    """The merged model; where ranks stay apart, which it has no place for, the frozen model that they belong to."""

    def write(self, subject: ExportSubject, directory: Path, storage: Storage) -> PackingReport | None:
        """See `FormatWriter`."""
        if subject.separate:
            model = load_model(subject.frozen, dtype=None)
            model.config.use_cache = True
            take_weights(subject.frozen, directory, link=False)
            save_description(model, subject.tokenizer, directory, _dtype_of(model))
        elif subject.weights is None:
            save_model(subject.model, subject.tokenizer, directory)
        else:
            take_weights(subject.weights, directory, link=subject.weights != subject.frozen)
            save_description(subject.model, subject.tokenizer, directory, _dtype_of(subject.model))
        return None

    def read_zeros(self, directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> Zeros | None:
        """See `FormatWriter`."""
        return read_huggingface(directory, shapes)

    def usage(self, facts: UsageFacts) -> str | None:
        """See `FormatWriter`."""
        if facts.separate:
            return SEPARATE_USAGE if facts.adapter else FROZEN_USAGE
        return OUR_USAGE if facts.narrowed else STOCK_USAGE


class HuggingFaceClassifier(HuggingFaceDecoder):
    """The same of a classifier."""

    def usage(self, facts: UsageFacts) -> str | None:
        """See `FormatWriter`."""
        return OUR_USAGE
