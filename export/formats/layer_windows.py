"""A written format measured some layers at a time, where its runtime cannot hold the whole file.

The model is cut to consecutive layers between its own embedding and head, and goes the same way as the whole did: the
same writer, the same number format, its runtime, and torch to compare with. So every layer is written and computed
once. The shipped file itself is not run; its weights are those, and its zeros are counted in it.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from export.formats.export_format import ExportSubject, PlannedFormat
from export.verification.parity_check import MergedReference, ParityCheck
from shearling.model.layers import TransformerLayers, find_layers

if TYPE_CHECKING:
    from shearling.kernel.packed_format import Matrix


def check_by_layers(
    planned: PlannedFormat, subject: ExportSubject, reference: MergedReference, scratch: Path
) -> tuple[ParityCheck, ...]:
    """Measure a format in `planned.parts` parts, on the fixed text.

    Args:
        planned: the format.
        subject: what was written; comes back as it was.
        reference: of the whole model.
        scratch: a directory, in which each part is written and removed again.
    """
    transformer = find_layers(subject.model)
    count = len(transformer.layers)
    step = max(1, -(-count // planned.parts))
    checks: list[ParityCheck] = []
    for start in range(0, count, step):
        stop = min(start + step, count)
        with (
            layers_alone(subject.model, transformer, start, stop),
            tempfile.TemporaryDirectory(dir=scratch, prefix=".layers-") as directory,
        ):
            integers = renumbered(subject.integers, transformer.layers_path, start, stop)
            part = dataclasses.replace(subject, integers=integers, masks=None)
            planned.writer.write(part, Path(directory), planned.storage)
            own = MergedReference(subject.model, reference.head, reference.blocks)
            for measured in planned.writer.measure(Path(directory), own.blocks, planned.storage):
                name = f"{measured.candidate}, layers {start} to {stop - 1}"
                checks.append(own.check(dataclasses.replace(measured, candidate=name), own.fixed))
    return tuple(checks)


@contextmanager
def layers_alone(model: Any, transformer: TransformerLayers, start: int, stop: int) -> Iterator[None]:
    """Leave a model the layers from `start` to before `stop`; it comes back as it was."""
    config, chosen = model.config, transformer.layers[start:stop]
    owner_path, _, leaf = transformer.layers_path.rpartition(".")
    owner = model.get_submodule(owner_path)
    count, kinds = config.num_hidden_layers, getattr(config, "layer_types", None)
    # Some layers have a number and others a place for one: what has no cache leaves it empty.
    modules: list[Any] = [module for layer in chosen for module in layer.modules()]
    numbered = [module for module in modules if getattr(module, "layer_idx", None) is not None]
    try:
        setattr(owner, leaf, nn.ModuleList(chosen))
        config.num_hidden_layers = stop - start
        if kinds is not None:
            config.layer_types = kinds[start:stop]
        # By its number a layer finds its part of the cache.
        for module in numbered:
            module.layer_idx -= start
        yield
    finally:
        for module in numbered:
            module.layer_idx += start
        if kinds is not None:
            config.layer_types = kinds
        config.num_hidden_layers = count
        setattr(owner, leaf, nn.ModuleList(transformer.layers))


def renumbered(matrices: Mapping[str, Matrix], layers_path: str, start: int, stop: int) -> dict[str, Matrix]:
    """Matrices under the paths that they have in a model with the layers from `start` to before `stop` alone."""
    found = {}
    for path, matrix in matrices.items():
        if not path.startswith(f"{layers_path}."):
            found[path] = matrix
            continue
        number, _, rest = path.removeprefix(f"{layers_path}.").partition(".")
        if start <= int(number) < stop:
            found[f"{layers_path}.{int(number) - start}.{rest}"] = matrix
    return found
