"""Which validation rows choose a sub-network, and which ones are held back to say how good the chosen one is.

The best of many sub-networks looks better on the rows that chose it than it is. So the last third of the rows, by the
digest of their content, chooses nothing: the chosen sub-network is measured on it once, at the end, and what it reaches
there is no more and no less than what it will reach on other unseen rows.

A search may spend less than all rows: its `limit` is the most that choose, and the most that are held back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

HELD_BACK_SHARE = 3
"""One row in so many is held back."""

PARTS = (0.5, 0.75, 1.0)
"""Shares of the choosing rows after which a race looks who goes on. Every candidate is measured on the first one."""


@dataclass(frozen=True)
class RowSplit:
    """See the module. A position counts the choosing rows first, then those that are held back.

    Attributes:
        places: of each row in the validation split, by position.
        digests: of each row, by position.
        choosing: number of rows that choose; positions below it.
    """

    places: tuple[int, ...]
    digests: tuple[str, ...]
    choosing: int

    @classmethod
    def of(cls, digests: Sequence[str], *, limit: int | None) -> RowSplit:
        """Split rows by the digests of their content.

        Args:
            digests: of every validation row.
            limit: most rows that choose, and most that are held back; None: all.
        """
        order = sorted(range(len(digests)), key=lambda place: (digests[place], place))
        boundary = len(order) - len(order) // HELD_BACK_SHARE
        choosing, held_back = order[:boundary][:limit], order[boundary:][:limit]
        places = (*choosing, *held_back)
        return cls(places, tuple(digests[place] for place in places), len(choosing))

    @property
    def held_back(self) -> range:
        """Positions of the rows that choose nothing; empty where there are fewer than three rows."""
        return range(self.choosing, len(self.places))

    @property
    def parts(self) -> tuple[int, ...]:
        """Numbers of choosing rows, rising: the looks of a race."""
        return tuple(sorted({max(1, round(share * self.choosing)) for share in PARTS}))

    def places_of(self, positions: range) -> list[int]:
        """Where rows stand in the validation split."""
        return [self.places[position] for position in positions]

    def sha256(self, positions: range) -> str:
        """Digest of rows; equal ones mean equal questions."""
        return hashlib.sha256("".join(self.digests[position] for position in positions).encode()).hexdigest()
