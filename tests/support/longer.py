"""Which values of a parameter the short run of the tests takes, and which are left to the long one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_slow(values: Iterable[Any], *, fast: Iterable[Any]) -> list[Any]:
    """The values for `parametrize` or `params`: all run in `make test-all`, those of `fast` in `make test` as well."""
    at_once = tuple(fast)
    return [value if value in at_once else pytest.param(value, marks=pytest.mark.slow) for value in values]
