"""Decoders whose layers keep caches of different widths, since their attention was cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from export.formats.onnx import example_cache
from shearling.model.export_support import EXPORT_TASK, export_configuration

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
