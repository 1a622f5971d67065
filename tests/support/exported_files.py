"""Exports made and read directory by directory, without the stage."""

from __future__ import annotations

from pathlib import Path

from export.formats.export_format import Storage
from export.verification.zeros import ZeroCheck, check_zeros, read_huggingface, read_onnx, read_openvino
from shearling.elastic.mask import Masks
from shearling.registry.number_formats import NUMBER_FORMATS


def stored_as(weight_format: str, *, kernel: str = "stock") -> Storage:
    return Storage(NUMBER_FORMATS.get(weight_format), sparse_kernel=kernel == "sparse")


def count_zeros(directory: Path, masks: Masks) -> dict[str, ZeroCheck]:
    """Of every directory that is there, by its name."""
    shapes = {path: tuple(mask.shape) for path, mask in masks.items()}
    readers = {"model": read_huggingface, "openvino": read_openvino, "onnx": read_onnx, "onnx-genai": read_onnx}
    return {
        name: check_zeros(name, read(directory / name, shapes), masks)
        for name, read in readers.items()
        if (directory / name).is_dir()
    }
