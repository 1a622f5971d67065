"""Where a server says that it is: what programs read to reach it."""

from __future__ import annotations

import socket
from typing import cast

import pytest

from serve.http.server import bind, start_listening
from serve.http.stage import _tell_address
from shearling.errors import EnvironmentFault


class Bound:
    """A socket that is bound to an address which this machine need not have."""

    def getsockname(self) -> tuple[str, int, int, int]:
        """As of IPv6."""
        return "fd00::5", 8000, 0, 0


def test_an_address_that_begins_with_a_letter_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Rich takes what stands in brackets for its own."""
    _tell_address(cast("socket.socket", Bound()), guarded=True)
    assert "ready: http://[fd00::5]:8000/v1" in capsys.readouterr().err


def test_of_two_that_were_bound_before_either_listened_the_second_is_told_that_the_address_is_taken() -> None:
    """Two servers that load their models at once."""
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with bind("127.0.0.1", port) as second:
            start_listening(first)
            with pytest.raises(EnvironmentFault, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
                start_listening(second)
        with pytest.raises(EnvironmentFault, match="Address already in use"):
            bind("127.0.0.1", port)
