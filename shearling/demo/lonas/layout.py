"""Where the demo of elastic widths puts things, and what it works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shearling.demo.derived_recipe import RECIPES
from shearling.demo.layout import DemoLayout
from shearling.run import Run

ModelKind = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class LonasSubject:
    """What a demo of one kind of model works on.

    Attributes:
        title: of its report.
        recipe: of the super-network; the baseline is LoRA at full width with the same adapters, trained likewise.
        formats: of the exports.
        timed: what is timed.
    """

    title: str
    recipe: Path
    formats: str
    timed: str


SUBJECTS: Mapping[ModelKind, LonasSubject] = {
    "encoder": LonasSubject("LoNAS on an encoder", RECIPES / "minilm-lonas.toml", "hf,openvino,onnx", "a forward"),
    "decoder": LonasSubject("LoNAS on a decoder", RECIPES / "smollm2-lonas.toml", "hf,openvino", "a token"),
}


class LonasLayout(DemoLayout):
    """The directory of a demo, and in it one run for each training."""

    @property
    def lora(self) -> Run:
        """LoRA at full width."""
        return Run(self.path / "lora")

    @property
    def lonas(self) -> Run:
        """Elastic ranks and widths."""
        return Run(self.path / "lonas")

    @property
    def heuristic(self) -> Path:
        """The document of the middle sub-network."""
        return self.lonas.path / "heuristic.json"

    @property
    def heuristic_export(self) -> Path:
        """The middle sub-network, cut to size."""
        return self.lonas.path / "export-heuristic"

    @property
    def exports(self) -> dict[str, Path]:
        """Label -> export, the reference first."""
        return {
            "LoRA, full width": self.lora.export,
            "LoNAS, heuristic": self.heuristic_export,
            "LoNAS, searched": self.lonas.export,
        }

    @property
    def forward(self) -> Path:
        """Times of an encoder: what `python -m serve forward --json` said."""
        return self.path / "forward.json"

    @property
    def report(self) -> Path:
        """The table, as Markdown."""
        return self.path / "report.md"
