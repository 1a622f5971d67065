"""Assets out of wheels, with the real pip against a local directory."""

from __future__ import annotations

import hashlib
import zipfile

import pytest

from shearling.cache import cache_directory
from shearling.errors import ArtefactCorrupt, ArtefactMissing, EnvironmentFault, RecipeInvalid
from shearling.recipe.section import PackageAsset
from tests.support.users import without_home
from train.package_asset import fetch

CONTENT = b"one\ntwo\n" * 1000


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A directory with one wheel, the only place where pip looks."""
    directory = tmp_path / "registry"
    directory.mkdir()
    wheel = directory / "tiny_asset-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_asset/data/rows.jsonl", CONTENT)
        archive.writestr(
            "tiny_asset-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\nRequires-Dist: nowhere-to-be-found\n",
        )
        archive.writestr(
            "tiny_asset-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("tiny_asset-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.setenv("SHEARLING_CACHE", str(tmp_path / "cache"))
    return wheel


def asset(wheel, **changes) -> PackageAsset:
    pinned = {
        "wheel": "tiny-asset",
        "version": "1.0",
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "member": "tiny_asset/data/rows.jsonl",
    }
    return PackageAsset(**{**pinned, **changes})


def test_fetched_once_then_offline(registry, tmp_path):
    wanted = asset(registry)
    path = fetch(wanted)
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(tmp_path / "cache")
    registry.unlink()
    assert fetch(wanted) == path


def test_damaged_member_is_extracted_again(registry):
    path = fetch(asset(registry))
    path.write_bytes(CONTENT[:-1] + b"x")
    assert fetch(asset(registry)).read_bytes() == CONTENT


def test_other_digest_is_refused_and_removed(registry, tmp_path):
    with pytest.raises(ArtefactCorrupt, match="the recipe pins"):
        fetch(asset(registry, sha256="0" * 64))
    assert not list((tmp_path / "cache").rglob("*.whl"))


def test_pip_failure_is_explained(registry):
    with pytest.raises(EnvironmentFault, match="No matching distribution") as caught:
        fetch(asset(registry, version="2.0"))
    assert "offline" in caught.value.remedy


def test_missing_or_escaping_member(registry):
    with pytest.raises(ArtefactMissing, match="no file"):
        fetch(asset(registry, member="tiny_asset/other"))
    for member in ("../../etc/passwd", "/etc/passwd", ""):
        with pytest.raises(RecipeInvalid):
            fetch(asset(registry, member=member))


def test_a_wheel_writes_nowhere_but_into_the_cache(registry, tmp_path):
    """`model//tmp/x` is below `model/`, and what is left of it is an absolute path."""
    outside = tmp_path / "outside"
    with zipfile.ZipFile(registry, "a") as archive:
        archive.writestr(f"model/{outside}", CONTENT)
    with pytest.raises(ArtefactMissing, match="no directory"):
        fetch(asset(registry, member="model/"))
    assert not outside.exists()


def test_cache_location(monkeypatch, tmp_path):
    monkeypatch.delenv("SHEARLING_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "shearling"


def test_no_place_for_a_cache(registry, monkeypatch):
    without_home(monkeypatch)
    with pytest.raises(EnvironmentFault, match=r"no home.*SHEARLING_CACHE"):
        fetch(asset(registry))


def test_a_member_that_ends_in_a_slash_is_a_directory(registry, tmp_path):
    directory = fetch(asset(registry, member="tiny_asset/"))
    assert (directory / "data" / "rows.jsonl").read_bytes() == CONTENT
    with pytest.raises(ArtefactMissing, match="no directory"):
        fetch(asset(registry, member="absent/"))
