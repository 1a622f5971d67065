"""Where what can be made or fetched again is kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "SHEARLING_CACHE"


def cache_directory() -> Path | None:
    """`SHEARLING_CACHE`, else `XDG_CACHE_HOME/shearling`, else `~/.cache/shearling`; None for a user without a home."""
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "shearling"
    except RuntimeError:
        return None
