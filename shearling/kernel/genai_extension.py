"""ONNX Runtime GenAI with the operator of domain `shearling`, where a graph asks for it.

GenAI reads all that it does from `genai_config.json`, and loads operators only from the directory of the model, which
is not the place for code. So it is given another directory, of this user alone: links to the files of the model, its
document with what is asked for, and a copy of our library.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling.errors import ArtefactCorrupt
from shearling.kernel.build import build_onnx_runtime_library
from shearling.kernel.onnx_runtime_extension import needs_operators
from shearling.kernel.runtime_refusal import last_line
from shearling.strict_json import read_json

if TYPE_CHECKING:
    import onnxruntime_genai

GENAI_CONFIG = "genai_config.json"
MODEL_ONNX = "model.onnx"


def load_genai_model(
    directory: Path, *, session_options: Mapping[str, Any], provider: str | None = None
) -> onnxruntime_genai.Model:
    """Load a model, with our library where it needs it. No token ends a text: that is up to who asks for one.

    Args:
        directory: holds `genai_config.json`.
        session_options: of ONNX Runtime, as `genai_config.json` names them.
        provider: as GenAI names it, such as `cuda`; None is the CPU.

    Raises:
        ArtefactCorrupt: GenAI cannot read it, or its document names another graph or a library to load.
        DocumentInvalid: its document is malformed.
        ArtefactMissing, PackageMissing, CompilerMissing: see `session_options_for`.
    """
    import onnxruntime_genai

    document = _read_config(directory / GENAI_CONFIG)
    options = document["model"]["decoder"]["session_options"]
    options |= {**session_options, "provider_options": [] if provider is None else [{provider: {}}]}
    document["model"]["eos_token_id"] = []
    library = build_onnx_runtime_library() if needs_operators(directory / MODEL_ONNX) else None
    with tempfile.TemporaryDirectory(prefix="shearling-") as made:
        place = Path(made)
        for file in directory.resolve().iterdir():
            (place / file.name).symlink_to(file)
        if library is not None:
            options["custom_ops_library"] = library.name
            (place / library.name).unlink(missing_ok=True)
            shutil.copyfile(library, place / library.name)
        (place / GENAI_CONFIG).unlink()
        (place / GENAI_CONFIG).write_text(json.dumps(document), encoding="utf-8")
        try:
            return onnxruntime_genai.Model(str(place))
        # Its exceptions are bare RuntimeErrors, and those of ONNX Runtime share no base but Exception.
        except Exception as error:
            raise ArtefactCorrupt(
                f"ONNX Runtime GenAI cannot load it: {last_line(error)}", where=directory, remedy="Export again"
            ) from error


def _read_config(path: Path) -> dict[str, Any]:
    """The document, refused where it makes GenAI load code or another graph, as that of no export does."""
    document = read_json(path)
    decoder = _object(_object(document, "model"), "decoder")
    if decoder.get("filename") != MODEL_ONNX or "custom_ops_library" in _object(decoder, "session_options"):
        raise ArtefactCorrupt(
            f"it names another graph than {MODEL_ONNX}, or a library to load", where=path, remedy="Export again"
        )
    return document


def _object(outer: dict[str, Any], key: str) -> dict[str, Any]:
    """The object under a key, which is there from then on."""
    inner = outer.setdefault(key, {})
    if not isinstance(inner, dict):
        raise ArtefactCorrupt(f"{key} is no object", where=GENAI_CONFIG, remedy="Export again")
    return inner
