"""Users of this machine, as a process finds them."""

from __future__ import annotations

import pwd
from typing import NoReturn

import pytest


def without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this user have no home directory, as an unnamed one of a container, nor a cache elsewhere."""

    def unknown(_: int) -> NoReturn:
        raise KeyError

    for name in ("HOME", "XDG_CACHE_HOME", "SHEARLING_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
