from __future__ import annotations

import itertools

import hypothesis
from hypothesis import strategies as st

from serve.http.stop_strings import StopFilter

LETTERS = st.text(alphabet="ab🦊", max_size=24)
STOPS = st.lists(st.text(alphabet="ab🦊", min_size=1, max_size=4), max_size=4)


def text_before(text: str, stops: list[str]) -> tuple[str, bool]:
    """The definition: read on, letter by letter, until what was read ends with a stop string."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@hypothesis.given(text=LETTERS, stops=STOPS, cuts=st.lists(st.integers(0, 24)))
def test_a_text_ends_where_it_says_so_however_it_comes(text: str, stops: list[str], cuts: list[int]) -> None:
    expected, stopped = text_before(text, stops)
    places = sorted({0, *(cut for cut in cuts if cut < len(text)), len(text)})
    stop_filter = StopFilter(stops)
    told = ""
    for start, end in itertools.pairwise(places):
        told += stop_filter.push(text[start:end])
        assert expected.startswith(told)
    assert (told + stop_filter.finish(), stop_filter.stopped) == (expected, stopped)


@hypothesis.given(text=LETTERS, stops=STOPS)
def test_nothing_is_held_that_cannot_become_a_stop_string(text: str, stops: list[str]) -> None:
    stop_filter = StopFilter(stops)
    told = stop_filter.push(text)
    if not stop_filter.stopped:
        held = text[len(told) :]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_nothing_comes_after_a_stop_string() -> None:
    stop_filter = StopFilter(["stop"])
    assert [stop_filter.push(piece) for piece in ("a st", "op b", "c")] == ["a ", "", ""]
    assert stop_filter.finish() == ""
