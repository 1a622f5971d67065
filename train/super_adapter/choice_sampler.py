"""Which sub-network a micro-batch trains: a draw that depends on the seed and the micro-batch's number alone.

independent   every group draws for itself: all sub-networks are equally likely, and with 90 groups nearly all that
              are drawn have the mean size, so that the largest and the smallest are never trained (NLS, LoNAS)
shared        one draw for all groups: the largest, the smallest and those between them in turn (SQFT, section 3)
nested        one draw for all groups, of any rank b from 1 to r with the same chance, those of the lists or not: every
              prefix is trained, and of the one that is drawn all b ranks (DyLoRA, arXiv 2210.07558, without freezing)

The lists of values open from their largest on: it may come alone at first, and the others behind it at once or one
after the other (progressive shrinking; Once-for-All, arXiv 1908.09791). With lists of two the latter are the same.
"""

from __future__ import annotations

from typing import Literal

from shearling.elastic.search_space import Choice, SearchSpace

Draw = Literal["shared", "independent", "nested"]


class RankSampler:
    """Uniform choices from a counter-based generator (Philox).

    The draw for micro-batch n is a pure function of (seed, n). So it is made once per micro-batch outside the forward,
    is the same in every process of a distributed run, and continues exactly after a resume: the state is the counter.

    Args:
        space: of the search.
        seed: of the run.
        kind: which choices belong together.
        largest_until: so many micro-batches at the beginning train the largest sub-network.
        shrinks_until: the micro-batches from there to this one are shared out in equal parts, of which each draws one
            more value of every list; 0: all values are drawn from there on.

    Attributes:
        space: to draw from; a nested draw has ranks that no search has.
        drawn: micro-batches drawn so far; part of a checkpoint.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int,
        kind: Draw = "independent",
        largest_until: int = 0,
        shrinks_until: int = 0,
    ) -> None:
        self.space = space.of_every_rank() if kind == "nested" else space
        self.seed = seed
        self.kind = kind
        self.largest_until = largest_until
        self.shrinks_until = shrinks_until
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

        values = self._open_at(micro_batch)
        # Raw 64-bit words: their values are fixed by the algorithm, where those of Generator.integers may change
        # between releases of numpy. The bias of the remainder is below 2^-58 for lists of up to 64 values.
        raw = np.random.Philox(key=[self.seed, 0], counter=[0, 0, 0, micro_batch]).random_raw(len(values))
        if self.kind == "independent":
            return {
                group: allowed[int(word) % len(allowed)]
                for (group, allowed), word in zip(values.items(), raw, strict=True)
            }
        # A place between the ends of every list, word / 2^64; lists of one length take the same index.
        word = int(raw[0])
        return {group: allowed[word * len(allowed) >> 64] for group, allowed in values.items()}

    def smallest_at(self, micro_batch: int) -> dict[str, int]:
        """The smallest that may be drawn for a micro-batch, counted from 0."""
        return {group: allowed[-1] for group, allowed in self._open_at(micro_batch).items()}

    def _open_at(self, micro_batch: int) -> dict[str, tuple[int, ...]]:
        """Of every group the values that may be drawn."""
        opened = longest = max(len(group.values) for group in self.space.groups)
        behind = micro_batch - self.largest_until
        if behind < 0:
            opened = 1
        elif self.shrinks_until:
            opened = 2 + behind * (longest - 1) // (self.shrinks_until - self.largest_until)
        return {group.id: group.values[:opened] for group in self.space.groups}


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

    def smallest_at(self, micro_batch: int) -> dict[str, int]:
        """The one choice."""
        return self._choice
