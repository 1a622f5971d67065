"""How much of the plane of accuracy and cost a search has come to dominate: one number that grows as its front does.

It is the share of the rectangle between no cost, no error, no accuracy and a little more than the largest sub-network
costs (Zitzler and Thiele, 1998). Where nothing is saved, it is the accuracy of the best.
"""

from __future__ import annotations

from collections.abc import Sequence

from search.journal import Record

MARGIN = 1.1
"""The reference costs so many times what the dearest costs; at its own cost, the largest would dominate nothing."""


def hypervolumes(records: Sequence[Record], *, dearest: float = 0.0) -> list[float]:
    """The hypervolume after each record, 0 to 1.

    Args:
        records: all on the same rows, in the order of the search.
        dearest: cost of the dearest sub-network, where it may not be among them.
    """
    if not records:
        return []
    reference = MARGIN * max(dearest, *(record.cost for record in records))
    volumes: list[float] = []
    front: list[tuple[float, float]] = []
    for record in records:
        point = (record.cost / reference if reference else 0.0, record.accuracy)
        if not any(cost <= point[0] and accuracy >= point[1] for cost, accuracy in front):
            front = [other for other in front if other[0] < point[0] or other[1] > point[1]]
            front = sorted([*front, point])
            volumes.append(_area(front))
        else:
            volumes.append(volumes[-1])
    return volumes


def _area(front: Sequence[tuple[float, float]]) -> float:
    """Of the union of the rectangles from each point to the reference at cost 1 and accuracy 0, by rising cost."""
    ends = [cost for cost, _ in front[1:]] + [1.0]
    return sum((end - cost) * accuracy for (cost, accuracy), end in zip(front, ends, strict=True))
