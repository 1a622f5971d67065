"""ONNX graphs that torch makes once for all tests of a run: for equal modules it makes equal ones, in seconds."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig

from tests.support.once_per_run import once_per_run

LARGEST_BYTES = 16 << 20
"""Of a module's tensors; the graph of a larger one is not kept."""

OF_NO_MODULE = {"_is_hf_initialized"}
OF_NO_CONFIGURATION = {"_original_object_hash", "architectures", "dtype", "model_type", "transformers_version"}
"""What is noted of where a model has come from, and is in no graph; the types of its tensors say what they are."""


class KeptGraphs:
    """Stands in for `torch.onnx.export`, which it asks for what it has not seen yet.

    Equal are modules with the same classes, attributes and tensors, which are asked for in the same way. What torch
    itself, or a library, does otherwise from one test to the next is not noticed: a test that patches one of them
    between two exports asks `torch.onnx.export` itself (`fresh_graphs`).

    Args:
        export: torch's own.
        factory: the fixture `tmp_path_factory`; graphs lie where all processes of a run find them.
    """

    def __init__(self, export: Callable[..., Any], factory: pytest.TempPathFactory) -> None:
        self.export = export
        self._factory = factory
        self._kept: dict[bytes, Any] = {}

    def __call__(self, module: nn.Module, *arguments: Any, **options: Any) -> Any:
        """See `torch.onnx.export`; what comes back is the caller's alone."""
        key = digest_of(module, arguments, options)
        if key is None:
            return self.export(module, *arguments, **options)
        if key not in self._kept:
            import onnx_ir

            def make(directory: Path) -> None:
                onnx_ir.save(self.export(module, *arguments, **options).model, directory / "model.onnx")

            model = onnx_ir.load(once_per_run(self._factory, f"graph-{key.hex()}", make) / "model.onnx")
            for value in model.graph.initializers.values():
                value.const_value = _own(value)
            self._kept[key] = model
        return torch.onnx.ONNXProgram(self._kept[key].clone(), None)


def _own(value: Any) -> Any:
    """A tensor of an initializer that no module can change."""
    import onnx_ir

    return onnx_ir.tensor(value.const_value.numpy().copy(), name=value.const_value.name)


def digest_of(module: nn.Module, *question: object) -> bytes | None:
    """Equal for equal modules that are asked for in the same way.

    Args:
        module: whose classes, attributes and tensors count.
        question: all else that counts.

    Returns:
        None for a module that is too large to keep what is made of it, and for what cannot be written down, such as a
        function of a test.
    """
    if sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers())) > LARGEST_BYTES:
        return None
    stream = io.BytesIO()
    try:
        _Writer(stream).dump((module, *question))
    except (pickle.PicklingError, AttributeError, TypeError, RecursionError):
        return None
    return hashlib.sha256(stream.getvalue()).digest()


def _in_order(value: Any) -> Any:
    """The same in every process, in which texts have other hashes, and whoever has put it together."""
    if isinstance(value, dict):
        return {name: _in_order(value[name]) for name in sorted(value)}
    return sorted(value) if isinstance(value, set) else value


class _Writer(pickle._Pickler):
    """Writes tensors by what they hold, and one that stands in several places as one.

    A text, list or the like is written wherever it stands: whether two that are equal are one is in no graph, and a
    model may be asked for once with the list that its class has and once with one of its own.
    """

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, protocol=pickle.HIGHEST_PROTOCOL)
        self._numbers: dict[int, int] = {}

    def memoize(self, value: object) -> None:
        """See `pickle._Pickler`, which puts down what it will not write again."""
        if not isinstance(value, str | bytes | tuple | list | dict | set | frozenset):
            super().memoize(value)

    def reducer_override(self, value: object) -> Any:
        """See `pickle.Pickler`."""
        if not isinstance(value, nn.Module | PretrainedConfig | GenerationConfig):
            return NotImplemented
        make, arguments, state, *rest = value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        module = isinstance(value, nn.Module)
        left_out = OF_NO_MODULE if module else OF_NO_CONFIGURATION
        told = {name: part for name, part in sorted(state.items()) if name not in left_out}
        # The order of a module's parts is that of its graph.
        ordered = {
            name: part if module and not isinstance(part, set) else _in_order(part) for name, part in told.items()
        }
        return (make, arguments, ordered, *rest)

    def persistent_id(self, value: object) -> object:
        """See `pickle.Pickler`."""
        if isinstance(value, str) and (not value or Path(value).is_absolute()):
            # Where a model was read from, if anywhere, is in no graph.
            return "place"
        if not isinstance(value, Tensor):
            return None
        number = self._numbers.setdefault(id(value), len(self._numbers))
        content = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest = hashlib.sha256(content.tobytes()).hexdigest()
        return (number, type(value).__name__, str(value.dtype), tuple(value.shape), value.stride(), digest)
