"""The operators in ONNX Runtime GenAI."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling_runtime.faults import ModelUnusable, RuntimeUnavailable
from shearling_runtime.onnx_runtime import operators

if TYPE_CHECKING:
    import onnxruntime_genai

CONFIG = "genai_config.json"
PACKAGE = "'onnxruntime-genai>=0.18,<0.19'"


def load_genai_model(directory: str | Path, **session_options: Any) -> onnxruntime_genai.Model:
    """An `onnxruntime_genai.Model` of an exported directory.

    GenAI loads operators only from the directory of the model, which is not the place for code; so the model is loaded
    from a temporary directory with links to its files and a copy of the library.

    Args:
        directory: holds `genai_config.json`.
        session_options: of ONNX Runtime, as that document names them: `intra_op_num_threads=4`.

    Raises:
        ModelUnusable: a file is missing or damaged, or its document names a library of its own.
        RuntimeUnavailable: ONNX Runtime GenAI is not installed, or see `operators`.
    """
    library = Path(operators())
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise RuntimeUnavailable(
            f"ONNX Runtime GenAI cannot be imported: {error}", remedy=f"pip install {PACKAGE}"
        ) from error
    source = Path(directory).resolve()
    document, options = _read_config(source / CONFIG)
    options |= {**session_options, "custom_ops_library": library.name}
    with tempfile.TemporaryDirectory(prefix="shearling-") as made:
        place = Path(made)
        for file in source.iterdir():
            if file.name not in (CONFIG, library.name):
                (place / file.name).symlink_to(file)
        shutil.copyfile(library, place / library.name)
        (place / CONFIG).write_text(json.dumps(document), encoding="utf-8")
        try:
            return onnxruntime_genai.Model(str(place))
        # Its exceptions are bare RuntimeErrors, and those of ONNX Runtime share no base but Exception.
        except Exception as error:
            raise ModelUnusable(f"ONNX Runtime GenAI cannot load it: {error}", where=source) from error


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The document, and its session options."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        decoder = document["model"]["decoder"]
        options = decoder.setdefault("session_options", {})
        strange = "custom_ops_library" in options or Path(decoder["filename"]).name != decoder["filename"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelUnusable(f"no document that ONNX Runtime GenAI reads: {error}", where=path) from error
    if strange:
        raise ModelUnusable("it names a graph elsewhere, or a library to load", where=path)
    return document, options
