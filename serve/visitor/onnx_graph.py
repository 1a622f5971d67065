"""An ONNX file in ONNX Runtime on the CPU: with its cache as inputs and outputs, or without any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serve.visitor.fault import VisitorFault, last_words
from serve.visitor.greedy import TIMING_SOURCE, Integers, Rereader, decode_greedily, likeliest
from serve.visitor.ir import PAST, PRESENT, around_ids, find_ids

PRECISION = {"tensor(float)": "fp32", "tensor(float16)": "fp16", "tensor(bfloat16)": "bf16"}
ELEMENT_TYPE = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(bfloat16)": 16}
"""bf16 as onnx.TensorProto counts it: older releases know types of numpy alone, and numpy has no such one."""
NUMPY = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32, "tensor(bool)": np.bool_}


class VisitedOnnx:
    """An ONNX file of any exporter whose inputs are token ids and what follows from them.

    Args:
        file: the model.
        options: as of `serve.runtimes.runtime.RunOptions`.
        own: none are known.

    Raises:
        VisitorFault: the file cannot be read, its inputs are not those of a text model, or another precision than its
            own was asked for.
    """

    def __init__(self, file: Path, options: Mapping[str, Any], own: Mapping[str, str]) -> None:
        import onnxruntime

        self._runtime = onnxruntime
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        if options["threads"] is not None:
            settings.intra_op_num_threads, settings.inter_op_num_threads = options["threads"], 1
        try:
            self._session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no other base
            reason = last_words(error)
            remedy = "Sparse files are measured without environment=" if "shearling" in reason else None
            raise VisitorFault(
                "ModelUnsupported", f"ONNX Runtime cannot load it: {reason}", where=file, remedy=remedy
            ) from error
        self._inputs = {node.name: node for node in self._session.get_inputs()}
        self._ids = find_ids(list(self._inputs), where=file)
        self._past = [node for name, node in self._inputs.items() if name.startswith(PAST)]
        self._outputs = [node.name for node in self._session.get_outputs()]
        self._scores = "logits" if "logits" in self._outputs else self._outputs[0]
        self._cache: dict[str, Any] = {}
        floats = (self._past or self._session.get_outputs())[0].type
        self.facts = {
            "runtime": f"ONNX Runtime {onnxruntime.__version__}",
            "provider": self._session.get_providers()[0],
            "precision": PRECISION.get(floats, floats),
            "settings": {
                "intra_op_num_threads": str(settings.intra_op_num_threads or "default"),
                "cache": "inputs and outputs" if self._past else "none: every token reads all again",
            },
            "timing_source": TIMING_SOURCE,
        }
        if options["precision"] not in ("default", self.facts["precision"]):
            raise VisitorFault(
                "DeviceUnavailable",
                f"this ONNX model computes in {self.facts['precision']}, {options['precision']} was asked for",
                where=file,
                remedy="ONNX Runtime takes the precision of the file: use --precision default",
            )

    def generate(self, rows: Sequence[Sequence[int]], new_tokens: int) -> dict[str, Any]:
        """See `serve.visitor.greedy.decode_greedily`."""
        self._cache = {node.name: self._empty(node, len(rows)) for node in self._past}
        if not self._past:
            return decode_greedily(Rereader(lambda text: self._read(text, 0)).step, rows, new_tokens)
        return decode_greedily(lambda chunk, seen: likeliest(self._read(chunk, seen)), rows, new_tokens)

    def _read(self, chunk: Integers, seen: int) -> Any:
        binding = self._session.io_binding()
        values = around_ids(chunk, seen, ids=self._ids)
        for name, node in self._inputs.items():
            if name in self._cache:
                binding.bind_ortvalue_input(name, self._cache[name])
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(values[name], dtype=NUMPY[node.type]))
        for name in self._outputs:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        outputs = dict(zip(self._outputs, binding.get_outputs()))
        for name in self._cache:
            self._cache[name] = outputs[PRESENT + name[len(PAST) :]]
        return outputs[self._scores].numpy()

    def _empty(self, node: Any, batch: int) -> Any:
        shape = [batch, *(side if isinstance(side, int) else 0 for side in node.shape[1:])]
        return self._runtime.OrtValue.ortvalue_from_shape_and_type(shape, ELEMENT_TYPE[node.type], "cpu")
