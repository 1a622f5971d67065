"""The number formats that exported weights may have."""

from __future__ import annotations

from typing import Literal

Weights = Literal["fp32", "fp16", "bf16", "int8", "int4"]
Format = Literal["openvino", "onnx", "hf", "peft"]
Kernel = Literal["stock", "sparse"]

FORMATS: tuple[Format, ...] = ("openvino", "onnx", "hf", "peft")
PACKABLE: tuple[Weights, ...] = ("bf16", "int8", "int4")
"""What the sparse kernel reads."""
INT4_GROUP = 128
"""Weights that share a scale in int4, where the width of the layer allows it."""
LOW_RANK = ("lora_a", "lora_b")
"""Last path component of the factors that a `separate` export keeps beside the weight; they are never quantized."""
