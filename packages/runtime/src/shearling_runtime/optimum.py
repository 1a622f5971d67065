"""The operators in optimum-intel."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from shearling_runtime.faults import RuntimeUnavailable
from shearling_runtime.openvino import preferred_properties
from shearling_runtime.pipeline import load


def load_causal_lm(directory: str | Path, *, packed: str | None = None, **options: Any) -> Any:
    """An `OVModelForCausalLM` of an exported directory.

    optimum-intel reads files with a core of its own, which knows no extensions; here the file is read with a core that
    does. A model carries its operators with it, so that the other core compiles it.

    Args:
        directory: holds `openvino_model.xml`.
        packed: `always`, `expanded`, `measured` or `never`, as `PACKED` of `pipeline`.
        options: of `OVModelForCausalLM.from_pretrained`, but for `compile_only`, which would read the file there;
            `ov_config` defaults to `preferred_properties`.

    Raises:
        RequestFault: `packed` is something else.
        RuntimeUnavailable: optimum-intel is not installed, or see `extension`.
    """
    properties = {} if packed is None else {"PACKED": packed}
    return _model_class(**properties).from_pretrained(directory, **{"ov_config": preferred_properties(), **options})


@functools.cache
def _model_class(**properties: str) -> Any:
    try:
        from optimum.intel.openvino import OVModelForCausalLM
    except ImportError as error:
        raise RuntimeUnavailable(
            f"optimum-intel cannot be imported: {error}", remedy="pip install 'optimum-intel[openvino]'"
        ) from error
    import openvino

    class SparseModelForCausalLM(OVModelForCausalLM):
        @staticmethod
        def load_model(file_name: str | Path, quantization_config: Any = None) -> openvino.Model:
            """See `OVModelForCausalLM.load_model`."""
            asked = {**preferred_properties(), **properties}
            return load(Path(file_name), "CPU", asked, obstacle="optimum-intel knows its cache").read()

    return SparseModelForCausalLM
