"""The names of a run's artefacts: one directory, one room for each stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shearling.artefact import Artefact, open_artefact
from shearling.errors import ArtefactMismatch


@dataclass(frozen=True)
class Run:
    """A run directory; nothing in it need exist yet.

    Attributes:
        path: the directory that `python -m train --output` names.
    """

    path: Path

    @property
    def task(self) -> Path:
        """Splits of the data, and the evaluation tasks made of them."""
        return self.path / "task"

    @property
    def data(self) -> Path:
        """The tasks that are learnt beside that one, each in a directory of its name."""
        return self.path / "data"

    @property
    def base(self) -> Path:
        """The imported dense model."""
        return self.path / "base"

    @property
    def lora(self) -> Path:
        """The adapter of the dense model, where a recipe adapts it before it is pruned."""
        return self.path / "lora"

    @property
    def adapted(self) -> Path:
        """The dense model with that adapter in its weights."""
        return self.path / "adapted"

    @property
    def sparse(self) -> Path:
        """The pruned model and its mask."""
        return self.path / "sparse"

    @property
    def variants(self) -> Path:
        """The pruned layers again, with more zeros, where a recipe asks for them."""
        return self.path / "variants"

    @property
    def super_adapter(self) -> Path:
        """The adapter at maximum rank, and the search space."""
        return self.path / "super_adapter"

    @property
    def search(self) -> Path:
        """The journal, the Pareto front and `best.json`."""
        return self.path / "search"

    @property
    def tensorboard(self) -> Path:
        """Losses for TensorBoard, where a recipe asks for them; no artefact."""
        return self.path / "tensorboard"

    @property
    def search_page(self) -> Path:
        """A search to look at while it runs; then it leads to the page in the artefact."""
        return self.path / "search.html"

    @property
    def latency(self) -> Path:
        """How long each form of a layer takes on the target."""
        return self.path / "latency"

    @property
    def export(self) -> Path:
        """The exported models and their report."""
        return self.path / "export"


def data_role(name: str) -> str:
    """What a task of [[data]] is called among the artefacts of a run, and among the parents of an adapter."""
    return f"data/{name}"


def open_dense(run: Run) -> Artefact:
    """The dense model that is pruned and teaches: `adapted`, or `base` where nothing was adapted first."""
    return open_artefact(run.adapted if run.adapted.exists() else run.base, kind="base")


def open_frozen(adapter: Artefact) -> Artefact:
    """The frozen model beside a super-adapter: `sparse`, or the dense model where nothing was pruned.

    Raises:
        ArtefactMismatch: it is not the one that the adapter was trained on.
    """
    run = Run(adapter.path.parent)
    frozen = open_artefact(run.sparse, kind="sparse") if "sparse" in adapter.manifest.parents else open_dense(run)
    role = frozen.manifest.kind
    if adapter.manifest.parents.get(role) != frozen.sha256:
        raise ArtefactMismatch(
            f"this {role} artefact is not the one that the adapter was trained on",
            where=frozen.path,
            remedy=f"Put back the one with manifest sha256 {adapter.manifest.parents.get(role)}, or train again",
        )
    return frozen
