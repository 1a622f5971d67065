"""Which sub-network a micro-batch trains: a uniform draw that depends on the seed and the micro-batch's number
alone.
"""

from __future__ import annotations

from shearling.elastic.search_space import Choice, SearchSpace


class RankSampler:
    """Uniform, independent choice in every group, from a counter-based generator (Philox).

    The draw for micro-batch n is a pure function of (seed, n). So it is made once per micro-batch outside the forward,
    is the same in every process of a distributed run, and continues exactly after a resume: the state is the counter.

    Attributes:
        space: to draw from.
        seed: of the run.
        drawn: micro-batches drawn so far; part of a checkpoint.
    """

    def __init__(self, space: SearchSpace, *, seed: int) -> None:
        self.space = space
        self.seed = seed
        self.drawn = 0

    def draw(self) -> dict[str, int]:
        """The choice for the next micro-batch."""
        choice = self.choice_at(self.drawn)
        self.drawn += 1
        return choice

    def choice_at(self, micro_batch: int) -> dict[str, int]:
        """The choice for one micro-batch, counted from 0."""
        import numpy as np

        # Raw 64-bit words: their values are fixed by the algorithm, where those of Generator.integers may change
        # between releases of numpy. The bias of the remainder is below 2^-58 for lists of up to 64 values.
        raw = np.random.Philox(key=[self.seed, 0], counter=[0, 0, 0, micro_batch]).random_raw(len(self.space.groups))
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

    def choice_at(self, micro_batch: int) -> dict[str, int]:
        """The one choice."""
        return self._choice
