"""Safetensors checkpoints, one tensor at a time: read from a mapping of the file, written to the place it will have.

A checkpoint larger than the memory passes through here. What is written has the bytes that `save_pretrained` would
write: the same shards, the same order, the same index. A shard appears under its name when it is complete and synced.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from shearling.errors import ModelUnsupported, ShapeMismatch, ShearlingError
from shearling.model.checkpoint_safety import INDEX, WEIGHTS, weight_files

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Dtype = Literal["float32", "bfloat16", "float16"]
KEPT_DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")
"""What weights are stored in; others become the first."""

MAX_SHARD_BYTES = 4 * 10**9
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "BF16": "bfloat16",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "U8": "uint8",
    "I8": "int8",
    "BOOL": "bool",
}
"""The format's names -> torch's, in the order in which the format lays tensors out where several types share a file:
the most strictly aligned first."""
_NAMES = {torch_name: name for name, torch_name in _DTYPES.items()}
_LAYOUT = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")


@dataclass(frozen=True)
class StoredTensor:
    """What a file says of a tensor.

    Attributes:
        dtype: torch's name of it, such as `bfloat16`.
        shape: of the tensor.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of entries."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return self.count * self.torch_dtype.itemsize

    @property
    def torch_dtype(self) -> torch.dtype:
        """For torch."""
        import torch

        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @classmethod
    def of(cls, tensor: Tensor) -> StoredTensor:
        """What a file would say of this tensor."""
        return cls(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


class StoredWeights:
    """The tensors of a checkpoint, none of which is in memory.

    Args:
        directory: that `check_shards` has passed.

    Attributes:
        tensors: by name, in the order of names.

    Raises:
        ModelUnsupported: a tensor of a type that no weight has.
    """

    def __init__(self, directory: Path) -> None:
        from safetensors import safe_open

        self._file_of: dict[str, Path] = {}
        found: dict[str, StoredTensor] = {}
        for path in weight_files(directory):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    self._file_of[name] = path
                    found[name] = _described(file.get_slice(name), where=f"{path}: {name}")
        self.tensors = {name: found[name] for name in sorted(found)}

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored, a view of the file, whose pages are given back when the last view is gone; not to
        be modified.
        """
        from safetensors import safe_open

        with safe_open(self._file_of[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    @property
    def parameters(self) -> int:
        """Number of entries of all tensors."""
        return sum(tensor.count for tensor in self.tensors.values())

    @property
    def size_bytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.size_bytes for tensor in self.tensors.values())


def main_dtype(weights: StoredWeights) -> Dtype:
    """The floating-point type of most entries, where weights may be stored in it; else float32."""
    counts: dict[str, int] = dict.fromkeys(KEPT_DTYPES, 0)
    for tensor in weights.tensors.values():
        if tensor.dtype in counts:
            counts[tensor.dtype] += tensor.count
    return max(KEPT_DTYPES, key=lambda dtype: counts[dtype])


def _described(part: Any, *, where: str) -> StoredTensor:
    dtype = _DTYPES.get(part.get_dtype())
    if dtype is None:
        raise ModelUnsupported(f"a tensor of type {part.get_dtype()}", where=where, remedy="Give the plain checkpoint")
    return StoredTensor(dtype, tuple(part.get_shape()))


@dataclass
class WeightWriter:
    """Takes the tensors of a checkpoint in any order, each once; made by `writing_weights`."""

    directory: Path
    tensors: Mapping[str, StoredTensor]
    _shards: dict[str, _Shard] = field(default_factory=dict)

    def write(self, name: str, tensor: Tensor) -> None:
        """Put a tensor where it belongs; the shard that it completes appears.

        Raises:
            ShapeMismatch: it is of another shape or type than was announced, or not announced at all.
            ShearlingError: it was written already.
        """
        if self.tensors.get(name) != StoredTensor.of(tensor):
            raise ShapeMismatch(f"{StoredTensor.of(tensor)} is written, {self.tensors.get(name)} was said", where=name)
        shard = self._shards[name]
        if name not in shard.missing:
            raise ShearlingError("a tensor is written twice", where=name)
        shard.write(name, tensor)

    @property
    def missing(self) -> list[str]:
        """Names of the tensors that are not written yet."""
        return [name for name, shard in self._shards.items() if name in shard.missing]


@contextmanager
def writing_weights(
    directory: Path, tensors: Mapping[str, StoredTensor], *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> Iterator[WeightWriter]:
    """Write a checkpoint tensor by tensor.

    Args:
        directory: exists.
        tensors: all that will be written, in the order of the model, which decides the shards.
        max_shard_bytes: of a file; a tensor that is larger has its own.

    Raises:
        ShearlingError: at the end, where a tensor was not written; no index is there then.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.size_bytes,
        filename_pattern=WEIGHTS.replace(".", "{suffix}.", 1),
        max_shard_size=max_shard_bytes,
    )
    with ExitStack() as files:
        shards: dict[str, _Shard] = {}
        for file, names in split.filename_to_tensors.items():
            shard = _Shard(directory / file, {name: tensors[name] for name in names})
            files.callback(shard.discard)
            shards |= dict.fromkeys(names, shard)
        writer = WeightWriter(directory, dict(tensors), shards)
        yield writer
        if writer.missing:
            raise ShearlingError(f"{len(writer.missing)} tensors were not written", where=writer.missing[0])
    if split.is_sharded:
        total = {"total_parameters": sum(tensor.count for tensor in tensors.values()), **split.metadata}
        index = {"metadata": total, "weight_map": split.tensor_to_filename}
        (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class _Shard:
    """One file: a header that says where every tensor lies, and the tensors, filled in as they come."""

    def __init__(self, path: Path, tensors: Mapping[str, StoredTensor]) -> None:
        self.missing = set(tensors)
        self._path, self._partial = path, path.with_name(f".{path.name}.partial")
        header, self._offsets, self._size_bytes = _layout(tensors)
        self._header = header
        self._stream: IO[bytes] | None = None

    def write(self, name: str, tensor: Tensor) -> None:
        import torch

        if self._stream is None:
            self._stream = self._partial.open("wb")
            self._stream.write(self._header)
            # A disk that cannot hold the shard says so now.
            _reserve(self._stream, self._size_bytes)
        self._stream.seek(self._offsets[name])
        self._stream.write(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().data)
        self.missing.remove(name)
        if not self.missing:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._partial.rename(self._path)

    def discard(self) -> None:
        """Leave nothing half-written."""
        if self._stream is not None and self.missing:
            self._stream.close()
            self._partial.unlink(missing_ok=True)


def _reserve(stream: IO[bytes], size_bytes: int) -> None:
    try:
        os.posix_fallocate(stream.fileno(), 0, size_bytes)
    except OSError as error:
        if error.errno not in (22, 95):  # EINVAL, EOPNOTSUPP: a file system that cannot reserve
            raise


def _layout(tensors: Mapping[str, StoredTensor]) -> tuple[bytes, dict[str, int], int]:
    """The header as the format's own library writes it, the place of every tensor in the file, and the file's size."""
    ordered = sorted(tensors, key=lambda name: (_LAYOUT.index(_NAMES[tensors[name].dtype]), name))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts, end = {}, 0
    for name in ordered:
        starts[name], end = end, end + tensors[name].size_bytes
        entries[name] = {
            "dtype": _NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [starts[name], end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + start for name, start in starts.items()}, len(header) + end
