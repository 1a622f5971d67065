"""JSON read with suspicion and written atomically.

Read: no duplicate keys, no NaN or infinity, bounded size and depth, a JSON object at the top.
Written: to a temporary sibling, synced, renamed; a full disk never destroys the previous file.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import pydantic

from shearling.errors import ArtefactMissing, DocumentInvalid

MAX_BYTES = 16 * 2**20
MAX_DEPTH = 32
MOST_TOLD = 20
"""Wrong fields of a document that are named."""

# Up to the next bracket outside a string. Possessive, and a string may lack its end, so that no character is looked
# at twice.
_TO_BRACKET = re.compile(r'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+"?)*+([\[\]{}]|\Z)', re.DOTALL)

Model = TypeVar("Model", bound=pydantic.BaseModel)


class Document(pydantic.BaseModel):
    """Base of every value that is stored as JSON: frozen, no unknown keys, no silent coercion, finite numbers."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True
    )


def read_document(path: Path, model: type[Model], *, schema: str | None = None, max_bytes: int = MAX_BYTES) -> Model:
    """Read `path` strictly and validate it.

    Args:
        path: a JSON file.
        model: the pydantic class of the document.
        schema: expected value of the key `schema`, such as `shearling.subnet/1`.
        max_bytes: larger files are refused unread.

    Raises:
        ArtefactMissing: no such file.
        DocumentInvalid: malformed, too large, too deep, another or a newer schema, or invalid fields.
    """
    return validate_document(read_json(path, max_bytes=max_bytes), model, schema=schema, where=path)


def validate_document(
    data: Mapping[str, Any], model: type[Model], *, schema: str | None = None, where: str | Path
) -> Model:
    """Validate parsed JSON; errors name every field that is wrong."""
    if schema is not None:
        _check_schema(data.get("schema"), expected=schema, where=where)
    try:
        # Through JSON mode, so that strict validation accepts lists for tuples and strings for enumerations.
        return model.model_validate_json(json.dumps(data))
    except pydantic.ValidationError as error:
        raise DocumentInvalid(describe_validation_error(error), where=where) from None


def read_json(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Parse one JSON object from a file; see the module for what is refused.

    Raises:
        ArtefactMissing: no such file.
        DocumentInvalid: with line and column where the parser knows them.
    """
    try:
        size_bytes = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        raise ArtefactMissing("no such file", where=path, remedy="Check the path") from None
    if not path.is_file():
        raise ArtefactMissing("not a file", where=path, remedy="Give the JSON file itself")
    if size_bytes > max_bytes:
        raise DocumentInvalid(f"{size_bytes} bytes; at most {max_bytes} are accepted", where=path)
    return parse_json(path.read_bytes(), where=path)


def check_characters(value: Any, *, where: str | Path) -> None:
    """Refuse halves of surrogate pairs in the texts of a value: JSON can escape them, and no file of text holds them.

    Raises:
        DocumentInvalid: there is one.
    """
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError as error:
        raise DocumentInvalid(
            f"half of a surrogate pair (U+{ord(error.object[error.start]):04X}), which is no character",
            where=where,
            remedy="Write it again with whole characters, or leave it out",
        ) from None


def parse_json(raw: bytes, *, where: str | Path) -> dict[str, Any]:
    """Parse one JSON object from bytes.

    Raises:
        DocumentInvalid: anything but one well-formed object.
    """
    if not raw.strip():
        raise DocumentInvalid("the file is empty", where=where)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DocumentInvalid(f"not UTF-8 at byte {error.start}", where=where) from None
    _check_depth(text, where=where)
    try:
        data = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise DocumentInvalid(
            f"malformed JSON at line {error.lineno}, column {error.colno}: {error.msg}", where=where
        ) from None
    except ValueError as error:
        raise DocumentInvalid(str(error), where=where) from None
    if not isinstance(data, dict):
        raise DocumentInvalid(f"expected a JSON object, found {type(data).__name__}", where=where)
    return data


def write_document(path: Path, document: pydantic.BaseModel) -> None:
    """Write a document as indented JSON, atomically."""
    write_json(path, document.model_dump(mode="json", by_alias=True))


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically; refuses NaN and infinity (ValueError: a defect of the caller)."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, see `whole_file`."""
    with whole_file(path) as stream:
        stream.write(text.encode())


def append_line(path: Path, document: pydantic.BaseModel) -> None:
    """Add a document to a file of one JSON object a line; it is on the disk when this returns."""
    with path.open("ab") as stream:
        stream.write(document.model_dump_json().encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def drop_incomplete_line(path: Path) -> None:
    """Remove what a writer that was killed has left of its last line."""
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete != len(content):
        os.truncate(path, complete)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content replaces a file at the end, and only if nothing went wrong: temporary sibling, fsync,
    rename.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def describe_validation_error(error: pydantic.ValidationError, *, names: Mapping[str, str] | None = None) -> str:
    """One line that names each wrong field, of many the first, what was found, and why it is wrong.

    Args:
        error: of a document.
        names: what users call its fields, where they know other names.
    """
    parts = []
    # What a default would have been is of no use where the value that it depends on is wrong.
    items = [item for item in error.errors(include_url=False) if item["type"] != "default_factory_not_called"]
    for item in items[:MOST_TOLD]:
        field = ".".join(str(part) for part in item["loc"]) or "document"
        field = (names or {}).get(field, field)
        found = f" (found {item['input']!r:.60})" if item["type"] not in ("missing",) else ""
        parts.append(f"{field}: {item['msg'].removeprefix('Value error, ')}{found}")
    if len(items) > MOST_TOLD:
        parts.append(f"and {len(items) - MOST_TOLD} more")
    return "; ".join(parts)


def _check_schema(found: object, *, expected: str, where: str | Path) -> None:
    if found == expected:
        return
    name, _, version = expected.partition("/")
    found_name, _, found_version = str(found).partition("/")
    if found_name == name and found_version.isdigit() and int(found_version) > int(version):
        raise DocumentInvalid(f"schema {found} is newer than {expected}", where=where, remedy="Upgrade shearling")
    raise DocumentInvalid(f"schema is {found!r}, expected {expected!r}", where=where)


def _check_depth(text: str, *, where: str | Path) -> None:
    # Before parsing: json.loads recurses, and a hostile document would exhaust the stack.
    depth = 0
    for match in _TO_BRACKET.finditer(text):
        bracket = match[1]
        if bracket in ("[", "{"):
            depth += 1
            if depth > MAX_DEPTH:
                raise DocumentInvalid(f"nested deeper than {MAX_DEPTH} at character {match.start(1)}", where=where)
        elif bracket:
            depth -= 1


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"duplicate key {key!r}")
        result[key] = value
    return result


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits:.40} is beyond the range of numbers")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
