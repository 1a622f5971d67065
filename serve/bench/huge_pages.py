"""What speaks against a few processes whose memory the system did not move into huge pages, or not alike."""

from __future__ import annotations

from collections.abc import Mapping

MOST = 0.9
"""Who got so much of what it could use is like one that got all."""


def doubt_of_huge_pages(shares: Mapping[str, float]) -> str | None:
    """Told where the system granted none, or somebody only a part; None where there is nothing to tell.

    Args:
        shares: of the huge pages that a process could use, by whose; none where nobody asked for them.
    """
    if not shares or min(shares.values()) >= MOST:
        return None
    if max(shares.values()) == 0:
        return "This system gives no huge pages: like processes may differ by 15 % for their whole life"
    told = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return f"Huge pages were granted in part ({told}): like processes may differ for their whole life"
