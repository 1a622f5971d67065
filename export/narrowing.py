"""What an export of elastic widths adds: what it leaves out, what it counts, and caches with other heads in every
layer.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from export.formats.onnx import example_cache
from export.request import ExportRequest
from shearling.console import log
from shearling.elastic.merge_rule import MergeMode
from shearling.errors import ParityFailed, UsageError
from shearling.model.export_support import EXPORT_TASK, export_configuration

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def without_frozen_formats(request: ExportRequest, mode: MergeMode) -> ExportRequest:
    """Leave out what a narrowed model or a classifier has no use for: the adapter, whose base is the frozen model at
    full width and without a trained head, and the model beside which it would be kept.

    Raises:
        UsageError: nothing else was asked for.
    """
    absent = {"peft", "hf"} if mode == "separate" else {"peft"}
    dropped = [name for name in request.formats if name in absent]
    if dropped:
        log.print(
            f"left out: {', '.join(dropped)}, which would belong to the frozen model, at full width "
            "and with its own head"
        )
    left = tuple(name for name in request.formats if name not in absent)
    if not left:
        raise UsageError(
            "nothing is left to write",
            where="--formats",
            remedy="Add openvino or onnx, or another --merge where the ranks stay apart",
        )
    return dataclasses.replace(request, formats=left)


def check_size(model: nn.Module, expected: int) -> None:
    """Check that a narrowed model has exactly the weights that its description counts.

    Raises:
        ParityFailed: it has not.
    """
    found = sum(parameter.numel() for parameter in model.parameters())
    if found != expected:
        raise ParityFailed(f"the merged model has {found} weights, the sub-network counts {expected}", where="merge")


def conversion_options(model: PreTrainedModel) -> dict[str, Any]:
    """What optimum-intel must be told of a model whose layers keep caches of different widths; nothing otherwise.

    Args:
        model: whose cache is looked at.
    """
    shapes = [tuple((part.shape[1], part.shape[3]) for part in layer) for layer in example_cache(model)]
    if len(set(shapes)) == 1 and shapes[0][0][0] == getattr(model.config, "num_key_value_heads", shapes[0][0][0]):
        return {}
    configuration = export_configuration(model.config.model_type)
    stock = configuration.DUMMY_PKV_GENERATOR_CLASS

    class UnequalCaches(stock):  # type: ignore[misc, valid-type] # the class is known at run time
        """Example caches with the heads of every layer."""

        def generate(
            self, input_name: str, framework: str = "pt", int_dtype: str = "int64", float_dtype: str = "fp32"
        ) -> Any:
            def example(heads: int, width: int) -> Any:
                size = (self.batch_size, heads, self.sequence_length, width)
                return self.random_float_tensor(size, framework=framework, dtype=float_dtype)

            return [tuple(example(heads, width) for heads, width in layer) for layer in shapes]

    class UnequalConfiguration(configuration):  # type: ignore[misc, valid-type] # likewise
        DUMMY_PKV_GENERATOR_CLASS = UnequalCaches
        DUMMY_INPUT_GENERATOR_CLASSES = tuple(
            UnequalCaches if generator is stock else generator
            for generator in configuration.DUMMY_INPUT_GENERATOR_CLASSES
        )

    made = UnequalConfiguration(
        model.config, task=EXPORT_TASK.removesuffix("-with-past"), use_past=True, use_past_in_inputs=True
    )
    return {"custom_export_configs": {"model": made}}
