"""Where what can be made or fetched again is kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "SHEARLING_CACHE"


def cache_directory() -> Path:
    """`SHEARLING_CACHE`, else `XDG_CACHE_HOME/shearling`, else `~/.cache/shearling`."""
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "shearling"
