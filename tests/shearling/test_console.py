"""What a terminal shows of work under way."""

from __future__ import annotations

import io

import pytest

from shearling import console


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize(
    "description", ["short", "evaluating out/a-rather-long-directory-name/openvino on reviews_test"]
)
def test_count_times_and_note_are_whole(width: int, description: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    terminal = console.Log(file=stream, force_terminal=True, width=width, markup=False, color_system=None)
    monkeypatch.setattr(console, "log", terminal)
    with console.progress(description, total=1234) as advance:
        for _ in range(1234):
            advance(note="best 50.0%")
    # The last of what was drawn over and over.
    last = stream.getvalue().rpartition("\x1b[2K")[2].splitlines()[0]
    for part in ("1234/1234", "0:00:0", "best 50.0%"):
        assert part in last, last
    assert len(last.rstrip()) <= width
    assert (description in last) == (len(description) <= width - console.BESIDE)
