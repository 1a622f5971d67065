"""The operators in ONNX Runtime GenAI."""

from __future__ import annotations

import atexit
import importlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling_runtime.build_facts import read_build_facts
from shearling_runtime.faults import ModelUnusable, RuntimeUnavailable
from shearling_runtime.onnx_runtime import operators

if TYPE_CHECKING:
    import onnxruntime_genai

CONFIG, GRAPH = "genai_config.json", "model.onnx"
DOMAIN_IMPORT = b"\x42\x0d\x0a\x09shearling\x10"
"""In a graph that names our operators, as protobuf writes it."""
PACKAGE = "'onnxruntime-genai>=0.18,<0.19'"


def load_genai_model(directory: str | Path, **session_options: Any) -> onnxruntime_genai.Model:
    """An `onnxruntime_genai.Model` of an exported directory, with the operators.

    GenAI loads operators only from the directory of the model, which is not the place for code; so the model is loaded
    from a temporary directory with links to its files and a copy of the library, which goes when the process ends.

    Args:
        directory: holds `genai_config.json`.
        session_options: of ONNX Runtime, as that document names them: `intra_op_num_threads=4`.

    Raises:
        ModelUnusable: a file is missing or damaged, or its document names more than a decoder has, such as a library.
        RuntimeUnavailable: ONNX Runtime GenAI is not installed, or no temporary directory can be written, or see
            `operators`.
    """
    return open_model(Path(directory), session_options, packed=True, ends=True)


def open_model(directory: Path, session_options: Mapping[str, Any], *, packed: bool, ends: bool) -> Any:
    """The same, with a choice.

    Args:
        directory: see `load_genai_model`.
        session_options: likewise.
        packed: whether the operators are needed.
        ends: whether the tokens that the document names end a text.
    """
    library = Path(operators()) if packed else None
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise RuntimeUnavailable(
            f"ONNX Runtime GenAI cannot be imported: {error}", remedy=f"pip install {PACKAGE}"
        ) from error
    source = directory.resolve()
    document = read_config(source / CONFIG)
    options = document["model"]["decoder"]["session_options"]
    options |= session_options
    if not ends:
        document["model"]["eos_token_id"] = []
    if library is not None:
        options["custom_ops_library"] = library.name
    try:
        place = _temporary_directory()
        for file in source.iterdir():
            if file.name != CONFIG and (library is None or file.name != library.name):
                (place / file.name).symlink_to(file)
        if library is not None:
            shutil.copyfile(library, place / library.name)
        (place / CONFIG).write_text(json.dumps(document), encoding="utf-8")
    except OSError as error:
        raise RuntimeUnavailable(
            f"no links to its files can be made in a temporary directory: {error.strerror}",
            where=source,
            remedy="Make room there, or name another directory in TMPDIR",
        ) from error
    try:
        return onnxruntime_genai.Model(str(place))
    # Its exceptions are bare RuntimeErrors, and those of ONNX Runtime share no base but Exception.
    except Exception as error:
        raise ModelUnusable(f"ONNX Runtime GenAI cannot load it: {error}", where=source) from error


def _temporary_directory() -> Path:
    """Of this user alone, until the process ends: a tokenizer of the model is read from it, whenever it is made."""
    made = tempfile.TemporaryDirectory(prefix="shearling-")
    atexit.register(made.cleanup)
    return Path(made.name)


def read_config(path: Path) -> dict[str, Any]:
    """The document, with an object for session options.

    Raises:
        ModelUnusable: it is missing or damaged, or makes GenAI do more than run one graph of a decoder.
        RuntimeUnavailable: see `read_build_facts`.
    """
    # What knows of documents is beside the libraries.
    read_build_facts()
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelUnusable(f"no document that ONNX Runtime GenAI reads: {error}", where=path) from error
    # The toolchain's own module, which the build of the wheel puts beside this one.
    part = importlib.import_module("shearling_runtime.loading.genai_document").unknown_part(document)
    if part is not None:
        raise ModelUnusable(f"{part} is not what a decoder in {GRAPH} has there", where=path)
    document["model"]["decoder"].setdefault("session_options", {})
    return document
