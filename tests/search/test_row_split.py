"""Which rows choose, and which are held back."""

from __future__ import annotations

import hashlib

import pytest

from search.row_split import RowSplit

DIGESTS = [hashlib.sha256(str(row).encode()).hexdigest() for row in range(400)]


def test_the_last_third_by_digest_is_held_back_whatever_the_order_of_the_rows() -> None:
    split, turned = RowSplit.of(DIGESTS, limit=None), RowSplit.of(DIGESTS[::-1], limit=None)
    assert (split.choosing, len(split.held_back)) == (267, 133)
    assert sorted(split.places) == list(range(400))
    assert split.digests == tuple(sorted(DIGESTS)) == turned.digests
    assert [DIGESTS[place] for place in split.places_of(split.held_back)] == sorted(DIGESTS)[267:]
    assert split.sha256(split.held_back) == turned.sha256(turned.held_back)
    assert split.sha256(split.held_back) != split.sha256(range(split.choosing))


def test_a_limit_cuts_the_rows_that_choose_and_those_held_back_and_mixes_them_never() -> None:
    whole = RowSplit.of(DIGESTS, limit=None)
    held_back = set(whole.places_of(whole.held_back))
    for limit in (1, 100, 200, 1000):
        split = RowSplit.of(DIGESTS, limit=limit)
        assert (split.choosing, len(split.held_back)) == (min(267, limit), min(133, limit))
        assert not held_back & set(split.places_of(range(split.choosing)))
        assert set(split.places_of(split.held_back)) <= held_back


@pytest.mark.parametrize(("rows", "held_back"), [(1, 0), (2, 0), (3, 1), (61, 20)])
def test_few_rows_choose_before_any_is_held_back(rows: int, held_back: int) -> None:
    assert len(RowSplit.of(DIGESTS[:rows], limit=None).held_back) == held_back


@pytest.mark.parametrize(("choosing", "parts"), [(1, (1,)), (2, (1, 2)), (3, (2, 3)), (200, (100, 150, 200))])
def test_the_parts_of_a_race_end_with_all_rows_that_choose(choosing: int, parts: tuple[int, ...]) -> None:
    assert RowSplit(tuple(range(choosing)), tuple(DIGESTS[:choosing]), choosing).parts == parts
