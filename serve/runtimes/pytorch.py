"""PyTorch eager with Hugging Face `generate`: the reference, slow on purpose."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from serve.runtimes.deployment import Deployment
from serve.runtimes.runtime import Generation, OnText, Precision, RunOptions, RuntimeFacts
from serve.runtimes.semi_structured import PROPERTY, use_semi_structured
from serve.runtimes.tokenization import TextStream, TextTokenizer, TokenizedRuntime
from shearling.errors import DeviceUnavailable
from shearling.model.checkpoint import Dtype, load_model

DTYPE: dict[Precision, Dtype] = {"default": "float32", "fp32": "float32", "bf16": "bfloat16"}
CUDA_REMEDY = "Needs an NVIDIA driver and a CUDA build of PyTorch, or use --device CPU"


class TorchRuntime(TokenizedRuntime):
    """A Hugging Face model directory.

    Raises:
        ArtefactError: whatever `shearling.model.checkpoint.load_model` refuses.
    """

    def __init__(self, deployment: Deployment, options: RunOptions) -> None:
        import torch
        import transformers

        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self._device = "cuda" if options.device == "CUDA" else "cpu"
        self._model: Any = load_model(deployment.directory, dtype=DTYPE[options.precision]).to(self._device)
        self._tokenizer = TextTokenizer(deployment.directory)
        sparse_layers = 0
        if deployment.properties.get(PROPERTY, "NO") == "YES":
            sparse_layers = use_semi_structured(self._model, where=deployment.directory)
        self.facts = RuntimeFacts(
            runtime=f"PyTorch {torch.__version__}, transformers {transformers.__version__}",
            provider=torch.cuda.get_device_name() if self._device == "cuda" else "CPU",
            precision="bf16" if options.precision == "bf16" else "fp32",
            settings={
                "threads": str(torch.get_num_threads()),
                "attention": str(self._model.config._attn_implementation),
                "semi_structured_layers": str(sparse_layers),
            },
            timing_source="monotonic clock at each token that transformers' generate hands to its "
            "streamer, on the CPU: the device has finished it",
        )

    def generate(
        self,
        token_ids: Sequence[int],
        *,
        max_new_tokens: int,
        end_ids: frozenset[int] = frozenset(),
        on_text: OnText | None = None,
    ) -> Generation:
        """See `Runtime.generate`."""
        return self._generate([token_ids], max_new_tokens=max_new_tokens, end_ids=end_ids, on_text=on_text)

    def generate_batch(self, rows: Sequence[Sequence[int]], *, new_tokens: int) -> Generation:
        """See `Runtime.generate_batch`."""
        return self._generate(rows, max_new_tokens=new_tokens, end_ids=frozenset(), on_text=None)

    def _generate(
        self, rows: Sequence[Sequence[int]], *, max_new_tokens: int, end_ids: frozenset[int], on_text: OnText | None
    ) -> Generation:
        import torch
        import transformers

        clock = _Clock(TextStream(self._tokenizer, on_text) if on_text else None, end_ids)
        ends = sorted(end_ids) or None
        config = transformers.GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=ends,
            pad_token_id=ends[0] if ends else 0,
            use_cache=True,
        )
        # The model's own sampling defaults would be merged into ours, and may hold penalties.
        self._model.generation_config = transformers.GenerationConfig()
        with torch.inference_mode():
            self._wait_for_device()
            started_s = time.perf_counter()
            prompt = torch.tensor([list(row) for row in rows], device=self._device)
            self._model.generate(
                prompt, attention_mask=torch.ones_like(prompt), generation_config=config, streamer=clock
            )
            self._wait_for_device()
        total_s = time.perf_counter() - started_s
        gaps_s = tuple(later - earlier for earlier, later in pairwise(clock.times_s))
        return Generation(
            token_ids=tuple(clock.tokens), ttft_s=clock.times_s[0] - started_s, gaps_s=gaps_s, total_s=total_s
        )

    def close(self) -> None:
        """Give memory back."""
        del self._model

    def _wait_for_device(self) -> None:
        import torch

        if self._device == "cuda":
            torch.cuda.synchronize()


def require_device(device: str) -> None:
    """Check that PyTorch sees a device.

    Raises:
        DeviceUnavailable: it does not.
    """
    if device == "CPU":
        return
    import torch

    if not torch.cuda.is_available():
        raise DeviceUnavailable("PyTorch sees no CUDA device", remedy=CUDA_REMEDY)


class _Clock:
    """A streamer in the sense of transformers: `put` gets the prompt first, then each token, on the CPU."""

    def __init__(self, stream: TextStream | None, end_ids: frozenset[int]) -> None:
        self.tokens: list[int] = []
        self.times_s: list[float] = []
        self._stream = stream
        self._end_ids = end_ids
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        token = int(value.flatten()[0])
        self.times_s.append(time.perf_counter())
        if token in self._end_ids:
            return
        self.tokens.append(token)
        if self._stream:
            self._stream.push(token)

    def end(self) -> None:
        if self._stream:
            self._stream.finish()
