"""The metadata of a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shearling.errors import ArtefactCorrupt, ArtefactMissing, ModelUnsupported

MAGIC = b"GGUF"


@dataclass(frozen=True)
class GgufHeader:
    """The metadata of a GGUF file.

    Attributes:
        path: the file.
        fields: key -> value, as the specification names them.
    """

    path: Path
    fields: dict[str, Any]

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


def is_gguf(path: Path) -> bool:
    """Whether a file starts like a GGUF file."""
    if not path.is_file():
        return False
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
    if not is_gguf(path):
        raise ArtefactCorrupt("not a GGUF file", where=path)
    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    # The reader slices a memory map without checks, so a damaged file ends in whatever numpy raises.
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
        raise ArtefactCorrupt(
            f"not a readable GGUF file: {type(error).__name__}: {error}", where=path, remedy="Fetch it again"
        ) from error
    return GgufHeader(path, fields)
