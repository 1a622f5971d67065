"""Checkpoints that are quantized already, told from their configuration, the files beside it and the names of tensors.

Their weights are integers and scales: there is nothing to prune, and what is trained on them could not be merged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shearling.errors import ModelUnsupported
from shearling.strict_json import read_json

SECTIONS = ("quantization_config", "compression_config")
SIDECARS = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""What older versions of the quantizers leave beside a configuration that says nothing."""
TENSORS = {
    ".qweight": "gptq or awq",
    ".weight_scale_inv": "fp8",
    ".weight_scale": "fp8",
    "_proj_blocks": "mxfp4",
    ".weight.absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_packed": "compressed-tensors",
}
"""Ends of names that tensors of quantized weights have."""
REMEDY = "Give the checkpoint in float32, bfloat16 or float16 that it was made from"


def check_plain(config: Mapping[str, Any], *, where: Path) -> None:
    """Refuse a configuration that says that the weights are quantized.

    Args:
        config: content of config.json; sections of a `text_config` count as well.
        where: the file; others beside it are looked for.

    Raises:
        ModelUnsupported: names the method.
    """
    nested = config.get("text_config")
    for scope in (config, nested if isinstance(nested, Mapping) else {}):
        for section in SECTIONS:
            if scope.get(section):
                raise _quantized(_described(scope[section]), where=where)
    for name, method in SIDECARS.items():
        path = where.parent / name
        if path.is_file():
            raise _quantized(_described({"quant_method": method, **read_json(path)}), where=path)


def check_plain_tensors(names: Iterable[str], *, where: Path) -> None:
    """Refuse a file that holds parts of quantized weights, whatever its configuration says.

    Raises:
        ModelUnsupported: names the first.
    """
    for name in names:
        method = next((method for end, method in TENSORS.items() if name.endswith(end)), None)
        if method is not None:
            raise _quantized(method, where=f"{where}: {name}")


def _quantized(method: str, *, where: Path | str) -> ModelUnsupported:
    return ModelUnsupported(f"the checkpoint is quantized ({method})", where=where, remedy=REMEDY)


def _described(section: Any) -> str:
    if not isinstance(section, Mapping):
        return "by a method that is not named"
    method = str(section.get("quant_method") or section.get("quantization_method") or "a method that is not named")
    bits = section.get("bits") or section.get("w_bit")
    bits = bits or next((n for n in (4, 8) if section.get(f"load_in_{n}bit") or section.get(f"_load_in_{n}bit")), None)
    return method if bits is None else f"{method}, {bits} bits"
