"""What every test may rely on: this project first on the path, libraries offline and silent, one seed."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.support.kept_conversions import KeptConversions
    from tests.support.kept_graphs import KeptGraphs

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from shearling.command_line import quiet_libraries  # noqa: E402  (the path comes first)

quiet_libraries()
# A shell that starts the tests in the background has them ignore it, and their children with them.
signal.signal(signal.SIGINT, signal.default_int_handler)
# How long an example takes is the machine's doing; what must be fast has a test of its own.
hypothesis.settings.register_profile("shearling", deadline=None)
hypothesis.settings.load_profile("shearling")
pytest_plugins = ["serve.guard.pytest_plugin", "pytester"]
# What is slower packed is unpacked when it is loaded: a test that does not ask for that must not depend on how busy the
# machine is.
os.environ["SHEARLING_PACKED"] = "always"
# Children that tests start import the same project, wherever they run.
os.environ["PYTHONPATH"] = str(ROOT)


def pytest_collection_finish() -> None:
    """What has been imported by now stays: no collection of garbage, of which exporters ask for many, looks at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _kept_graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeptGraphs]:
    """Equal modules are traced once."""
    import torch

    from tests.support.kept_graphs import KeptGraphs

    kept = KeptGraphs(torch.onnx.export, tmp_path_factory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", kept)
        yield kept


@pytest.fixture(autouse=True, scope="session")
def _kept_conversions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeptConversions]:
    """Equal models are converted for OpenVINO once."""
    import export.formats.openvino as openvino_format
    from tests.support.kept_conversions import KeptConversions

    kept = KeptConversions(openvino_format._converted, tmp_path_factory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_format, "_converted", kept)
        yield kept


@pytest.fixture
def fresh_graphs(_kept_graphs: KeptGraphs, _kept_conversions: KeptConversions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this test exports is traced and converted for it."""
    monkeypatch.setattr("torch.onnx.export", _kept_graphs.export)
    monkeypatch.setattr("export.formats.openvino._converted", _kept_conversions.convert)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """No random state leaks from one test to the next."""
    import torch

    torch.manual_seed(0)
