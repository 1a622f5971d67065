"""Where the demo of pruning puts things: the main run, the baselines beside it, and what compares them."""

from __future__ import annotations

from pathlib import Path

from shearling.demo.derived_recipe import RECIPES
from shearling.demo.layout import DemoLayout
from shearling.run import Run

SHEARS_RECIPE = RECIPES / "smollm2-shears.toml"
LORA_RECIPE = RECIPES / "smollm2-lora.toml"


class ShearsLayout(DemoLayout):
    """The directory of a demo, which is a run as well: that of the sparse super-adapter."""

    @property
    def run(self) -> Run:
        """Pruning, super-adapter, search, export."""
        return Run(self.path)

    @property
    def lora(self) -> Run:
        """The same model with plain LoRA on the dense weights."""
        return Run(self.path / "baselines" / "lora")

    @property
    def pruned_after(self) -> Run:
        """The merged model of `lora`, pruned afterwards."""
        return Run(self.path / "baselines" / "merged-then-pruned")

    @property
    def dense_export(self) -> Path:
        """The dense base as it is, for the benchmark."""
        return self.path / "baselines" / "dense"

    @property
    def sparse_export(self) -> Path:
        """The pruned base without recovery, for the benchmark."""
        return self.path / "baselines" / "sparse"

    @property
    def packed_export(self) -> Path:
        """The chosen sub-network once more, for the sparse kernel."""
        return self.path / "export-sparse-int8"

    @property
    def report(self) -> Path:
        """The closing screen as a page."""
        return self.path / "report.html"

    @property
    def chart(self) -> Path:
        """Accuracy against speed, as a picture."""
        return self.path / "accuracy-speed.svg"
