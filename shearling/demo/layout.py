"""What every demo keeps beside its runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DemoLayout:
    """The directory of a demo; nothing in it need exist yet."""

    path: Path

    @property
    def recipes(self) -> Path:
        """Recipes that the demo derived from the shipped ones."""
        return self.path / "recipes"

    @property
    def evaluation(self) -> Path:
        """What `shearling evaluate --json` said."""
        return self.path / "evaluation.json"

    @property
    def benchmark(self) -> Path:
        """The `benchmark` artefact: times of a token."""
        return self.path / "benchmark"

    @property
    def ledger(self) -> Path:
        """Which steps are done, from which inputs, in what time."""
        return self.path / "demo.json"

    @property
    def summary(self) -> Path:
        """Everything on the closing screen, as JSON."""
        return self.path / "summary.json"
