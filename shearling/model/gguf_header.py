"""The metadata of a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling.errors import ArtefactCorrupt, ArtefactMissing, ModelUnsupported

if TYPE_CHECKING:
    import numpy.typing as npt

MAGIC = b"GGUF"


@dataclass(frozen=True)
class GgufHeader:
    """The metadata of a GGUF file.

    Attributes:
        path: the file.
        fields: key -> value, as the specification names them.
        tensors: name -> shape of the tensors, as torch would have it.
    """

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def require(self, key: str) -> Any:
        """The value of `key`.

        Raises:
            ModelUnsupported: the file does not say.
        """
        if key not in self.fields:
            raise ModelUnsupported(
                f"the GGUF file has no field '{key}'",
                where=self.path,
                remedy="Take the Hugging Face directory instead",
            )
        return self.fields[key]

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Every token that ends a text: of a document, of a turn, of a message."""
        found = {self.fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
        return tuple(sorted(int(token) for token in found if token is not None))


def is_gguf(path: Path) -> bool:
    """Whether a file is meant to be a GGUF file: it starts like one, or its name says so."""
    return path.is_file() and (path.suffix == ".gguf" or _starts_as_gguf(path))


def _starts_as_gguf(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def read_header(path: Path) -> GgufHeader:
    """Read the metadata, and check that every tensor lies inside the file.

    Raises:
        ArtefactMissing: no such file.
        ArtefactCorrupt: not a GGUF file, or truncated.
    """
    from gguf import GGUFReader

    if not path.is_file():
        raise ArtefactMissing("no such GGUF file", where=path)
    if not _starts_as_gguf(path):
        raise ArtefactCorrupt("not a GGUF file: it does not begin as one", where=path, remedy="Fetch it again")
    try:
        reader = GGUFReader(path)
        fields = {name: found.contents() for name, found in reader.fields.items()}
        tensors = {str(found.name): tuple(int(n) for n in reversed(found.shape)) for found in reader.tensors}
    # The reader slices a memory map without checks, so a damaged file ends in whatever numpy raises.
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
        raise ArtefactCorrupt(
            f"not a readable GGUF file: {type(error).__name__}: {error}", where=path, remedy="Fetch it again"
        ) from error
    return GgufHeader(path, fields, tensors)


def read_tensor(header: GgufHeader, name: str) -> npt.NDArray[Any]:
    """A tensor of the file, dequantized.

    Raises:
        ModelUnsupported: it has no tensor of that name.
    """
    from gguf import GGUFReader, dequantize

    for found in GGUFReader(header.path).tensors:
        if found.name == name:
            array: npt.NDArray[Any] = dequantize(found.data, found.tensor_type)
            return array
    raise ModelUnsupported(f"the GGUF file has no tensor '{name}'", where=header.path)
