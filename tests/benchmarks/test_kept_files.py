"""Files of one set of options are not taken for those of another, nor a part for the whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.kept_files import digest_of_model, digest_of_sources, keep_settings, whole_directory
from shearling.errors import UsageError


def test_a_directory_is_kept_for_its_settings(tmp_path: Path) -> None:
    place = tmp_path / "new" / "place"
    keep_settings(place, {"layers": 2, "versions": {"openvino": "1"}, "ranks": (1, 2)})
    keep_settings(place, {"layers": 2, "versions": {"openvino": "1"}, "ranks": (1, 2)})
    with pytest.raises(UsageError, match="layers = 2, not 3"):
        keep_settings(place, {"layers": 3})
    with pytest.raises(UsageError, match="openvino"):
        keep_settings(place, {"versions": {"openvino": "2"}})


def test_settings_that_were_not_known_are_added(tmp_path: Path) -> None:
    keep_settings(tmp_path / "place", {"layers": 2})
    keep_settings(tmp_path / "place", {"layers": 2, "group_size": 32})
    keep_settings(tmp_path / "place", {"layers": 2})
    with pytest.raises(UsageError, match="group_size = 32, not 64"):
        keep_settings(tmp_path / "place", {"layers": 2, "group_size": 64})


def test_what_a_decisive_setting_is_unknown_of_is_refused(tmp_path: Path) -> None:
    keep_settings(tmp_path / "place", {"layers": 2})
    with pytest.raises(UsageError, match="nothing says with what guard this was made"):
        keep_settings(tmp_path / "place", {"layers": 2, "guard": "a"}, decisive=("guard",))
    keep_settings(tmp_path / "new", {"guard": "a"}, decisive=("guard",))
    keep_settings(tmp_path / "new", {"guard": "a", "layers": 2}, decisive=("guard",))


def test_a_digest_of_sources_knows_their_names_and_contents(tmp_path: Path) -> None:
    digests = set()
    for name, content in (("a", "1"), ("b", "1"), ("b", "2"), ("deep/c", "2")):
        room = tmp_path / f"{len(digests)}" / "room"
        (room / name).parent.mkdir(parents=True)
        (room / f"{name}.py").write_text(content)
        (room / "left.out").write_text(str(len(digests)))
        (room / "telling.py").write_text(str(len(digests)))
        digests.add(digest_of_sources([room], without=("telling.py",)))
    assert len(digests) == 4
    again = tmp_path / "again" / "room"
    again.mkdir(parents=True)
    (again / "a.py").write_text("1")
    assert digest_of_sources([again]) in digests


def test_files_without_settings_are_refused_and_stay(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="nothing says"):
        keep_settings(tmp_path, {"layers": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "place"
    with pytest.raises(FileNotFoundError), whole_directory(place) as partial:
        (partial / "nowhere" / "rest").touch()
    assert not place.exists()
    for name in ("first", "second"):
        with whole_directory(place) as partial:
            (partial / name).touch()
        assert [path.name for path in place.iterdir()] == [name]
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_a_digest_knows_names_and_contents(tmp_path: Path) -> None:
    digests = set()
    for name, content in (("a", "1"), ("b", "1"), ("b", "2")):
        with whole_directory(tmp_path / "model") as partial:
            (partial / name).write_text(content)
        digests.add(digest_of_model(tmp_path / "model"))
    assert len(digests) == 3
