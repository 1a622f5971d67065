"""Where the demo of pruning puts things: the run, exports of what it stands on, and what compares them."""

from __future__ import annotations

from pathlib import Path

from shearling.demo.derived_recipe import RECIPES
from shearling.demo.layout import DemoLayout
from shearling.run import Run

SHEARS_RECIPE = RECIPES / "smollm2-shears.toml"


class ShearsLayout(DemoLayout):
    """The directory of a demo, which is a run as well: that of the sparse super-adapter."""

    @property
    def run(self) -> Run:
        """The dense model's LoRA, pruning, super-adapter, search, export."""
        return Run(self.path)

    @property
    def lora_export(self) -> Path:
        """The dense model with its LoRA in int8: what would be served without this project."""
        return self.path / "lora-int8"

    @property
    def packed_export(self) -> Path:
        """The chosen sub-network once more, for the sparse kernel."""
        return self.path / "sparse-int8"

    @property
    def report(self) -> Path:
        """The closing screen as a page."""
        return self.path / "report.html"

    @property
    def chart(self) -> Path:
        """Accuracy against speed, as a picture."""
        return self.path / "accuracy-speed.svg"
