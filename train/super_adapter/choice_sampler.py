"""Which sub-network a micro-batch trains: a draw that depends on the seed and the micro-batch's number alone.

independent   every group draws for itself: all sub-networks are equally likely, and with 90 groups nearly all that
              are drawn have the mean size, so that the largest and the smallest are never trained (NLS, LoNAS)
shared        one draw for all groups: the largest, the smallest and those between them in turn (SQFT, section 3)
"""

from __future__ import annotations

from typing import Literal

from shearling.elastic.search_space import Choice, SearchSpace

Draw = Literal["independent", "shared"]


class RankSampler:
    """Uniform choices from a counter-based generator (Philox).

    The draw for micro-batch n is a pure function of (seed, n). So it is made once per micro-batch outside the forward,
    is the same in every process of a distributed run, and continues exactly after a resume: the state is the counter.

    Attributes:
        space: to draw from.
        seed: of the run.
        kind: whether the groups draw together.
        largest_until: so many micro-batches at the beginning train the largest sub-network.
        drawn: micro-batches drawn so far; part of a checkpoint.
    """

    def __init__(self, space: SearchSpace, *, seed: int, kind: Draw = "independent", largest_until: int = 0) -> None:
        self.space = space
        self.seed = seed
        self.kind = kind
        self.largest_until = largest_until
        self.drawn = 0

    @property
    def validated(self) -> Choice:
        """The sub-network whose loss on the validation rows is measured."""
        return self.space.maximal()

    def draw(self) -> dict[str, int]:
        """The choice for the next micro-batch."""
        choice = self.choice_at(self.drawn)
        self.drawn += 1
        return choice

    def choice_at(self, micro_batch: int) -> dict[str, int]:
        """The choice for one micro-batch, counted from 0."""
        import numpy as np

        if micro_batch < self.largest_until:
            return self.space.maximal()
        # Raw 64-bit words: their values are fixed by the algorithm, where those of Generator.integers may change
        # between releases of numpy. The bias of the remainder is below 2^-58 for lists of up to 64 values.
        raw = np.random.Philox(key=[self.seed, 0], counter=[0, 0, 0, micro_batch]).random_raw(len(self.space.groups))
        if self.kind == "shared":
            # A place between the ends of every list, word / 2^64; lists of one length take the same index.
            word = int(raw[0])
            return {group.id: group.values[word * len(group.values) >> 64] for group in self.space.groups}
        return {
            group.id: group.values[int(word) % len(group.values)]
            for group, word in zip(self.space.groups, raw, strict=True)
        }


class OneSubnet(RankSampler):
    """The same sub-network every micro-batch: what a search has found is trained on alone.

    Args:
        choice: of the space.
    """

    def __init__(self, space: SearchSpace, choice: Choice, *, seed: int) -> None:
        super().__init__(space, seed=seed)
        space.check(choice)
        self._choice = dict(choice)

    @property
    def validated(self) -> Choice:
        """The one choice."""
        return self._choice

    def choice_at(self, micro_batch: int) -> dict[str, int]:
        """The one choice."""
        return self._choice
