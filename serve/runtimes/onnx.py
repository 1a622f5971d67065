"""ONNX Runtime with a greedy loop of our own: the cache stays on the device, only the logits come back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from serve.runtimes.deployment import Deployment
from serve.runtimes.onnx_provider import PROVIDERS, require_provider
from serve.runtimes.recording import Recording
from serve.runtimes.runtime import Decoding, Generation, RunOptions, RuntimeFacts
from serve.runtimes.tokenization import TextTokenizer, TokenizedRuntime
from shearling.errors import ArtefactCorrupt, DeviceUnavailable, ModelUnsupported, NonFiniteWeights
from shearling.kernel.onnx_runtime_extension import CACHE_BUFFER, DOMAIN, needs_operators, session_options_for
from shearling.kernel.runtime_refusal import refusals

if TYPE_CHECKING:
    import numpy as np

PAST, PRESENT = "past_key_values.", "present."
KNOWN_INPUTS = {"input_ids", "attention_mask", "position_ids"}
PRECISION = {"tensor(float)": "fp32", "tensor(float16)": "fp16", "tensor(bfloat16)": "bf16"}
ELEMENT_TYPE = {"tensor(float)": 1, "tensor(float16)": 10, "tensor(bfloat16)": 16}  # onnx.TensorProto


class OnnxRuntime(TokenizedRuntime):
    """A decoder with its KV cache as inputs and outputs.

    Inputs: input_ids [B, S], attention_mask [B, P + S], position_ids [B, S] (optional), past_key_values.{i}.key /
        .value
    [B, heads, P, width]. Outputs: logits [B, S, V], present.{i}.key / .value. Where the file says that a cache may be
    written in place, it is allocated once for all positions.

    Raises:
        ArtefactCorrupt: ONNX Runtime cannot read the model.
        ModelUnsupported: other inputs, or no cache.
        DeviceUnavailable: another provider, or another precision than the file holds.
        PackageMissing: the model needs our operator, and the headers of ONNX Runtime are not installed.
        CompilerMissing: it needs our operator, which cannot be built here.
    """

    def __init__(self, deployment: Deployment, options: RunOptions) -> None:
        import onnxruntime

        self._directory = deployment.directory
        self._device = "cpu" if options.device == "CPU" else "cuda"
        path = deployment.model_file
        packed = needs_operators(path)
        if packed and options.device != "CPU":
            raise DeviceUnavailable(
                f"the sparse kernel runs on CPUs, not on {options.device}",
                where=path,
                remedy="Use --device CPU, or a stock export",
            )
        session_options = session_options_for(path)
        session_options.log_severity_level = 3
        if options.threads is not None:
            session_options.intra_op_num_threads = options.threads
            session_options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), session_options, providers=[PROVIDERS[options.device]]
            )
        # ONNX Runtime's exceptions share no base but Exception.
        except Exception as error:
            raise ArtefactCorrupt(f"ONNX Runtime cannot load it: {error}", where=path, remedy="Export again") from error
        require_provider(self._session.get_providers(), options.device)
        self._inputs = {node.name: node for node in self._session.get_inputs()}
        self._outputs = [node.name for node in self._session.get_outputs()]
        self._past = self._check_interface()
        self._in_place = CACHE_BUFFER in self._session.get_modelmeta().custom_metadata_map
        self.facts = self._facts(options)
        if packed:
            self.facts.settings["custom_operators"] = DOMAIN
        self._tokenizer = TextTokenizer(self._directory)

    def generate(self, rows: Sequence[Sequence[int]], work: Decoding) -> Generation:
        """See `Runtime.generate`."""
        import numpy as np

        recording = Recording(work, self)
        positions = len(rows[0]) + work.max_new_tokens if self._in_place else 0
        cache = self._make_cache(len(rows), positions)
        chunk, seen = np.asarray([list(row) for row in rows], dtype=np.int64), 0
        while not recording.complete:
            logits, cache = self._step(chunk, seen, cache)
            seen += chunk.shape[1]
            chosen = logits.argmax(axis=-1)
            recording.take(*map(int, chosen))
            chunk = chosen.astype(np.int64)[:, None]
        if not np.isfinite(logits).all():
            raise NonFiniteWeights("the logits are NaN or infinite", where=self._directory)
        return recording.finish()

    def close(self) -> None:
        """Give memory and threads back."""
        del self._session

    def _step(
        self, chunk: np.ndarray[Any, Any], seen: int, cache: dict[str, Any]
    ) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        """One forward pass.

        Args:
            chunk: [B, S] new tokens.
            seen: P, tokens already in the cache.
            cache: input name -> OrtValue [B, heads, P, width] on the device.

        Returns:
            Logits [B, V] of the last position, and the longer cache.
        """
        import numpy as np

        batch, length = chunk.shape
        binding = self._session.io_binding()
        binding.bind_cpu_input("input_ids", chunk)
        binding.bind_cpu_input("attention_mask", np.ones((batch, seen + length), dtype=np.int64))
        if "position_ids" in self._inputs:
            positions = np.arange(seen, seen + length, dtype=np.int64)
            binding.bind_cpu_input("position_ids", np.tile(positions, (batch, 1)))
        for name, value in cache.items():
            binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            if self._in_place and name.startswith(PRESENT):
                binding.bind_ortvalue_output(name, cache[PAST + name.removeprefix(PRESENT)])
            else:
                binding.bind_output(name, self._device if name.startswith(PRESENT) else "cpu")
        with refusals(self._directory):
            self._session.run_with_iobinding(binding)
            # A provider may return before its device has finished.
            binding.synchronize_outputs()
        outputs = dict(zip(self._outputs, binding.get_outputs(), strict=True))
        logits = outputs["logits"].numpy()[:, -1].copy()  # numpy() is a view into memory that the session owns
        return logits, {
            PAST + name.removeprefix(PRESENT): value for name, value in outputs.items() if name.startswith(PRESENT)
        }

    def _make_cache(self, batch: int, positions: int) -> dict[str, Any]:
        """Of no token yet, with room for so many."""
        import onnxruntime

        cache = {}
        for node in self._past:
            shape = [batch, *(size if isinstance(size, int) else positions for size in node.shape[1:])]
            cache[node.name] = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                shape, ELEMENT_TYPE[node.type], self._device
            )
        return cache

    def _check_interface(self) -> list[Any]:
        past = [node for name, node in self._inputs.items() if re.fullmatch(r"past_key_values\.\d+\.(key|value)", name)]
        strange = set(self._inputs) - KNOWN_INPUTS - {node.name for node in past}
        if not past or strange or "logits" not in self._outputs:
            reason = (
                f"inputs that are not known: {', '.join(sorted(strange))}"
                if strange
                else "no KV cache among its inputs, or no logits"
            )
            raise ModelUnsupported(
                reason,
                where=self._directory / "model.onnx",
                remedy="Export with a KV cache: python -m export --formats onnx",
            )
        return past

    def _facts(self, options: RunOptions) -> RuntimeFacts:
        import onnxruntime

        precision = PRECISION.get(self._past[0].type, self._past[0].type)
        if options.precision not in ("default", precision):
            raise DeviceUnavailable(
                f"this ONNX model computes in {precision}, {options.precision} was asked for",
                where=self._directory,
                remedy="ONNX Runtime takes the precision of the file: use --precision default, or export another",
            )
        return RuntimeFacts(
            runtime=f"ONNX Runtime {onnxruntime.__version__}",
            provider=self._session.get_providers()[0],
            precision=precision,
            settings={
                "intra_op_num_threads": str(self._session.get_session_options().intra_op_num_threads or "default")
            },
            timing_source="monotonic clock around each step of the greedy loop of serve.runtimes.onnx",
        )
