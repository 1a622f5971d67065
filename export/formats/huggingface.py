"""A Hugging Face directory: safetensors in float32, the configuration and the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from export.formats.export_format import ExportSubject, FormatWriter, Storage, UsageFacts
from export.packing.packing_report import PackingReport
from export.verification.zeros import Zeros, read_huggingface
from shearling.model.checkpoint import load_model, save_model

STOCK_USAGE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("model")
tokenizer = AutoTokenizer.from_pretrained("model")"""

SEPARATE_USAGE = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "adapter")"""

OUR_USAGE = """\
from pathlib import Path

from shearling.model.checkpoint import load_model

model = load_model(Path("model"))"""


class HuggingFaceDecoder(FormatWriter):
    """The merged model; where ranks stay apart, which it has no place for, the frozen model that they belong to."""

    def write(self, subject: ExportSubject, directory: Path, storage: Storage) -> PackingReport | None:
        """See `FormatWriter`."""
        model = subject.model
        if subject.separate:
            model = load_model(subject.frozen)
            model.config.use_cache = True
        save_model(model, subject.tokenizer, directory)
        return None

    def read_zeros(self, directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> Zeros | None:
        """See `FormatWriter`."""
        return read_huggingface(directory, shapes)

    def usage(self, facts: UsageFacts) -> str | None:
        """See `FormatWriter`."""
        if facts.separate:
            return SEPARATE_USAGE
        return OUR_USAGE if facts.narrowed else STOCK_USAGE


class HuggingFaceClassifier(HuggingFaceDecoder):
    """The same of a classifier."""

    def usage(self, facts: UsageFacts) -> str | None:
        """See `FormatWriter`."""
        return OUR_USAGE
