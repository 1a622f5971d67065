"""IRs that optimum-intel makes once for all tests of a run: for equal models it makes equal ones, in seconds."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from shearling.kernel.openvino_core import openvino_core
from tests.support.kept_graphs import digest_of
from tests.support.once_per_run import once_per_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class KeptConversions:
    """Stands in for what `export.formats.openvino` lets optimum-intel do, which it asks for what it has not seen yet.

    Equal are models as for `KeptGraphs`, and with the same limits. Most weights of a model that is converted are no
    part of it: models of one shape are equal.

    Args:
        convert: writes an IR of a model into a directory, by options of optimum-intel, and reads it there.
        factory: the fixture `tmp_path_factory`; IRs lie where all processes of a run find them.
    """

    def __init__(
        self, convert: Callable[[PreTrainedModel, Path, Mapping[str, Any]], Any], factory: pytest.TempPathFactory
    ) -> None:
        self.convert = convert
        self._factory = factory

    def __call__(self, model: PreTrainedModel, directory: Path, options: Mapping[str, Any]) -> Any:
        """The `openvino.Model`, of files in the directory."""
        # Of no graph of torch's, but optimum-intel may ask for them.
        facts = (model.config.model_type, str(getattr(model.config, "dtype", None)))
        key = digest_of(model, dict(options), facts, _saved_without_weights())

        def make(kept: Path) -> None:
            self.convert(model, kept, options)

        # Example inputs are drawn at random: what a test draws later does not depend on who has converted a model.
        with torch.random.fork_rng(devices=[]):
            if key is None:
                return self.convert(model, directory, options)
            kept = once_per_run(self._factory, f"ir-{key.hex()}", make)
        directory.mkdir(parents=True, exist_ok=True)
        for file in kept.glob("openvino_model.*"):
            shutil.copyfile(file, directory / file.name)
        return openvino_core().read_model(directory / "openvino_model.xml")


def _saved_without_weights() -> bool:
    """Whether optimum-intel has been given a function of ours that saves a graph without its weights."""
    converter = sys.modules.get("optimum.exporters.openvino.convert")
    return isinstance(getattr(converter, "save_model", None), functools.partial)
