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
from shearling.kernel.loading.genai_document import GRAPH, unknown_part
from shearling.kernel.onnx_runtime_extension import needs_operators
from shearling.kernel.runtime_refusal import last_line
from shearling.strict_json import read_json

if TYPE_CHECKING:
    import onnxruntime_genai

GENAI_CONFIG = "genai_config.json"


def load_genai_model(
    directory: Path, *, session_options: Mapping[str, Any], provider: str | None = None
) -> onnxruntime_genai.Model:
    """Load a model, with our library where it needs it. No token ends a text: that is up to who asks for one.

    Args:
        directory: holds `genai_config.json`.
        session_options: of ONNX Runtime, as `genai_config.json` names them.
        provider: as GenAI names it, such as `cuda`; None is the CPU.

    Raises:
        ArtefactCorrupt: GenAI cannot read it, or its document names more than a decoder has, such as a library.
        DocumentInvalid: its document is malformed.
        ArtefactMissing, PackageMissing, CompilerMissing: see `session_options_for`.
    """
    import onnxruntime_genai

    document = _read_config(directory / GENAI_CONFIG)
    options = document["model"]["decoder"]["session_options"]
    options |= {**session_options, "provider_options": [] if provider is None else [{provider: {}}]}
    document["model"]["eos_token_id"] = []
    library = build_onnx_runtime_library() if needs_operators(directory / GRAPH) else None
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
    """The document, with session options, refused where it makes GenAI do more than run one graph of a decoder."""
    document = read_json(path)
    part = unknown_part(document)
    if part is not None:
        raise ArtefactCorrupt(f"{part} is not what a decoder in {GRAPH} has there", where=path, remedy="Export again")
    document["model"]["decoder"].setdefault("session_options", {})
    return document
