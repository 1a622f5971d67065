"""Where a server says that it is: what programs read to reach it."""

from __future__ import annotations

import socket
from typing import cast

import pytest

from serve.http.stage import _tell_address


class Bound:
    """A socket that is bound to an address which this machine need not have."""

    def getsockname(self) -> tuple[str, int, int, int]:
        """As of IPv6."""
        return "fd00::5", 8000, 0, 0


def test_an_address_that_begins_with_a_letter_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Rich takes what stands in brackets for its own."""
    _tell_address(cast("socket.socket", Bound()), guarded=True)
    assert "ready: http://[fd00::5]:8000/v1" in capsys.readouterr().err
