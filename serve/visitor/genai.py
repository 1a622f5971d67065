"""An IR with its tokenizer in OpenVINO GenAI; timings are its own perf_metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serve.visitor.fault import VisitorFault, last_words
from serve.visitor.greedy import generation
from serve.visitor.ir import OPERATOR_SET, forget_choice, prepare_core, require_precision
from serve.visitor.ir_settings import OF_GENAI, executed_precision, one_operator, reported_settings

TIMING_SOURCE = "openvino_genai perf_metrics: get_ttft, raw m_durations, get_generate_duration"


class VisitedGenai:
    """A stateful IR with its converted tokenizer; see `serve.visitor.ir.VisitedIr`."""

    def __init__(self, xml: Path, options: Mapping[str, Any], own: Mapping[str, str]) -> None:
        import openvino
        import openvino_genai

        self._where = xml.parent
        core, device = openvino.Core(), options["device"]
        properties = prepare_core(core, xml, options, own)
        try:
            of_device = {name: value for name, value in properties.items() if name not in OF_GENAI}
            probe = core.compile_model(one_operator(xml), device, of_device)
        except RuntimeError as error:
            raise VisitorFault(
                "UsageError", f"OpenVINO refuses {properties}: {last_words(error)}", where=xml
            ) from error
        self.facts = {
            "runtime": f"OpenVINO GenAI {openvino_genai.__version__.partition('-')[0]}",
            "provider": device,
            "precision": executed_precision(probe),
            "settings": {**reported_settings(probe), "openvino": openvino.__version__.partition("-")[0]},
            "timing_source": TIMING_SOURCE,
        }
        require_precision(self.facts["precision"], options)
        open_pipeline: Any = openvino_genai.LLMPipeline
        if OPERATOR_SET in xml.read_bytes():
            # As its own users load it: with the operators, and attention inside them.
            from shearling_runtime import pipeline as open_pipeline
        else:
            forget_choice(properties, where=xml)
        try:
            self._pipeline = open_pipeline(str(self._where), device, **properties)
        except Exception as error:  # RuntimeError, and the faults of shearling_runtime
            raise VisitorFault(
                "ModelUnsupported", f"OpenVINO GenAI cannot load it: {last_words(error)}", where=self._where
            ) from error

    def generate(self, rows: Sequence[Sequence[int]], new_tokens: int) -> dict[str, Any]:
        """See `serve.visitor.greedy.decode_greedily`."""
        import openvino_genai

        # A fresh configuration: what the model's own says of sampling and penalties does not belong in a greedy run.
        config = openvino_genai.GenerationConfig()
        config.do_sample, config.max_new_tokens, config.ignore_eos = False, new_tokens, True
        prompt, called_s = prompt_of(rows), time.perf_counter()
        read = read_generation(self._pipeline.generate(prompt, config), len(rows), called_s)
        if (len(read["token_ids"]), len(read["gaps_s"])) != (new_tokens, new_tokens - 1):
            raise VisitorFault(
                "ModelUnsupported", f"GenAI made {len(read['token_ids'])} tokens, {new_tokens} were asked for"
            )
        return read


def prompt_of(rows: Sequence[Sequence[int]]) -> Any:
    """What GenAI takes for token ids, [batch][length]."""
    import numpy as np
    import openvino
    import openvino_genai

    ids = np.asarray([list(row) for row in rows], dtype=np.int64)
    # A bare tensor holds one prompt; a batch comes with its mask.
    if len(rows) == 1:
        return openvino.Tensor(ids)
    return openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))


def read_generation(result: Any, rows: int, called_s: float) -> dict[str, Any]:
    """The fields of a `serve.runtimes.runtime.Generation`, as GenAI measured them itself.

    Args:
        result: of a call that has just returned.
        rows: that it read.
        called_s: just before it; of `time.perf_counter`.
    """
    metrics = result.perf_metrics
    ttft_s = metrics.get_ttft().mean / 1e3
    # On Linux both clocks are one. Milliseconds, though GenAI's own page says microseconds.
    began_s = metrics.raw_metrics.m_new_token_times[0] / 1e3 - ttft_s
    # One entry for each row of each step; the rows of a step share it.
    gaps_s = [float(gap_us) / 1e6 for gap_us in metrics.raw_metrics.m_durations[::rows]]
    return generation(
        [[int(token) for token in row] for row in result.tokens],
        began_s if called_s <= began_s <= time.perf_counter() else called_s,
        ttft_s,
        gaps_s,
        metrics.get_generate_duration().mean / 1e3,
    )
