"""What pytest loads of the installed project: the plugin of the latency guard, from its file.

By its name, which begins with a common word, it would be another project's, or take that name away from it.
"""

from __future__ import annotations

import importlib.util
import sys

import pytest

from shearling.own_stage import ROOT

PLUGIN = "serve.guard.pytest_plugin"
"""Its name in pytest, for `-p` and `pytest_plugins`."""
MODULE = "shearling_latency_guard"


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Register the plugin, unless somebody has named it."""
    if pluginmanager.has_plugin(PLUGIN):
        return
    spec = importlib.util.spec_from_file_location(MODULE, ROOT.joinpath(*PLUGIN.split(".")).with_suffix(".py"))
    if spec is None or spec.loader is None:
        raise ImportError(f"{PLUGIN} has no file")
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look for it there.
    sys.modules[MODULE] = module
    spec.loader.exec_module(module)
    pluginmanager.register(module, PLUGIN)
