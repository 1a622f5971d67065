"""The chosen adapter alone, in PEFT's format; with its mask where training was masked."""

from __future__ import annotations

from pathlib import Path

from export.formats.export_format import ExportSubject, FormatWriter, Storage, UsageFacts
from export.packing.packing_report import PackingReport
from shearling.elastic.sub_adapter import write_sub_adapter

USAGE = """\
from shearling.elastic.sub_adapter import load_sub_adapter

model = load_sub_adapter("RUN/sparse", "adapter")"""


class PeftAdapter(FormatWriter):
    """The adapter of a decoder."""

    def write(self, subject: ExportSubject, directory: Path, storage: Storage) -> PackingReport | None:
        """See `FormatWriter`."""
        chosen = subject.adapter
        if chosen is None:
            raise ValueError("there is no adapter to write")
        write_sub_adapter(chosen.network, chosen.choice, directory, base_model=chosen.base_model, masks=chosen.masks)
        return None

    def usage(self, facts: UsageFacts) -> str | None:
        """See `FormatWriter`."""
        return USAGE
