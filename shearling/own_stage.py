"""A stage of this project by its name, a common word, where another project has a package that is called so."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
Modules = dict[str, ModuleType]
_ours: dict[str, Modules] = {}
"""By stage, what was imported of it while it took the name of another package."""


@contextmanager
def own_stage(stage: str) -> Iterator[None]:
    """Let a name be that of our stage; afterwards it is again what it was, with all that is below it.

    Where nobody else has a package of this name, nothing changes. No other thread may import it meanwhile.

    Args:
        stage: such as `serve`.
    """
    theirs = _modules(stage)
    if not _is_foreign(stage):
        yield
        return
    _replace(stage, _ours.get(stage, {}))
    try:
        if stage not in sys.modules:
            _load(stage)
        yield
    finally:
        _ours[stage] = _modules(stage)
        _replace(stage, theirs)


def _modules(stage: str) -> Modules:
    return {name: module for name, module in sys.modules.items() if name == stage or name.startswith(f"{stage}.")}


def _replace(stage: str, modules: Modules) -> None:
    for name in _modules(stage):
        del sys.modules[name]
    sys.modules.update(modules)


def _is_foreign(stage: str) -> bool:
    """Whether an import would find another package, or none."""
    try:
        spec = importlib.util.find_spec(stage)
    except ValueError:
        # A module that nothing has found: somebody made it.
        return True
    return spec is None or spec.origin is None or Path(spec.origin).resolve().parent != ROOT / stage


def _load(stage: str) -> None:
    directory = ROOT / stage
    spec = importlib.util.spec_from_file_location(
        stage, directory / "__init__.py", submodule_search_locations=[str(directory)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{directory} holds no package")
    sys.modules[stage] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[stage])
