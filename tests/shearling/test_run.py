"""The rooms of a run, and the frozen model that belongs to an adapter."""

from __future__ import annotations

import pytest

from shearling.artefact import open_artefact, write_artefact
from shearling.errors import ArtefactMismatch, ArtefactMissing
from shearling.run import Run, open_frozen


def make(path, kind, **parents):
    with write_artefact(path, kind=kind, parents=parents) as draft:
        (draft.directory / "content.txt").write_text(f"{kind} {path.name}")
    return open_artefact(path, kind=kind)


def test_every_artefact_has_its_room(tmp_path):
    run = Run(tmp_path)
    names = ("task", "base", "sparse", "super_adapter", "search", "export")
    assert [getattr(run, name) for name in names] == [tmp_path / name for name in names]


@pytest.mark.parametrize("kind", ["base", "sparse"])
def test_the_frozen_model_is_the_adapters_parent(kind, tmp_path):
    run = Run(tmp_path)
    made = {name: make(getattr(run, name), name) for name in ("base", "sparse")}
    adapter = make(run.super_adapter, "super_adapter", **{kind: made[kind]})
    assert open_frozen(adapter) == made[kind]


def test_another_frozen_model_is_refused(tmp_path):
    run, other = Run(tmp_path / "run"), Run(tmp_path / "other")
    adapter = make(run.super_adapter, "super_adapter", sparse=make(other.sparse, "sparse"))
    with pytest.raises(ArtefactMissing):
        open_frozen(adapter)
    with write_artefact(run.sparse, kind="sparse", seed=9) as draft:
        (draft.directory / "content.txt").write_text("same shapes, other weights")
    with pytest.raises(ArtefactMismatch, match="not the one that the adapter was trained on") as caught:
        open_frozen(adapter)
    assert adapter.manifest.parents["sparse"] in caught.value.remedy
