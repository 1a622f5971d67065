"""A picture of matplotlib without a display, the same bytes for the same figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#22262b"
"""Of lines that marks are held against."""


def new_picture(width: float, height: float) -> Figure:
    """An empty one, of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Without pyplot: no global state, no display.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_picture(figure: Figure, directory: Path, *, stem: str) -> None:
    """Write `STEM.png` and `STEM.svg`."""
    import matplotlib

    # Without the salt and the date, every run would write other bytes.
    with matplotlib.rc_context({"svg.hashsalt": "shearling"}):
        figure.savefig(directory / f"{stem}.svg", metadata={"Date": None})
    figure.savefig(directory / f"{stem}.png", dpi=150)
