"""The operators in optimum-intel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shearling_runtime.faults import RuntimeUnavailable
from shearling_runtime.pipeline import MODEL, load


def load_causal_lm(directory: str | Path, *, packed: str | None = None, **options: Any) -> Any:
    """An `OVModelForCausalLM` of an exported directory.

    optimum-intel reads files with a core of its own, which knows no extensions; here the file is read with a core that
    does. A model carries its operators with it, so that the other core compiles it.

    Args:
        directory: holds `openvino_model.xml`.
        packed: `always`, `expanded`, `measured` or `never`, as `PACKED` of `pipeline`.
        options: of `OVModelForCausalLM.from_pretrained`, but for `compile_only`, which would read the file there. What
            `ov_config` leaves open is `preferred_properties()`, or OpenVINO's own where nothing stays packed.

    Raises:
        RequestFault: `packed` is something else.
        ModelUnusable: there is no model, or it is damaged.
        RuntimeUnavailable: optimum-intel is not installed, or see `extension`.
    """
    try:
        from optimum.intel.openvino import OVModelForCausalLM
    except ImportError as error:
        raise RuntimeUnavailable(
            f"optimum-intel cannot be imported: {error}", remedy="pip install 'optimum-intel[openvino]'"
        ) from error
    asked = {**(options.get("ov_config") or {}), **({} if packed is None else {"PACKED": packed})}
    device = str(options.get("device", "CPU")).upper()
    loaded = load(Path(directory) / MODEL, device, asked, obstacle="optimum-intel knows its cache")

    class SparseModelForCausalLM(OVModelForCausalLM):
        @staticmethod
        def load_model(file_name: str | Path, quantization_config: Any = None) -> Any:
            """See `OVModelForCausalLM.load_model`."""
            return loaded.read()

    return SparseModelForCausalLM.from_pretrained(directory, **{**options, "ov_config": dict(loaded.properties)})
