"""PyTorch eager with Hugging Face `generate`: the reference, slow on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serve.runtimes.deployment import Deployment
from serve.runtimes.recording import Recording
from serve.runtimes.runtime import Decoding, Generation, Precision, RunOptions, RuntimeFacts
from serve.runtimes.semi_structured import PROPERTY, use_semi_structured
from serve.runtimes.tokenization import TextTokenizer, TokenizedRuntime
from shearling.errors import DeviceUnavailable
from shearling.model.checkpoint import load_model
from shearling.model.weight_shards import Dtype
from shearling.target import read_switch

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

        wanted = read_switch(deployment.properties, PROPERTY, default=False)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self._device = "cuda" if options.device == "CUDA" else "cpu"
        self._model: Any = load_model(deployment.directory, dtype=DTYPE[options.precision]).to(self._device)
        self._tokenizer = TextTokenizer(deployment.directory)
        sparse_layers = 0
        if wanted:
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

    def generate(self, rows: Sequence[Sequence[int]], work: Decoding) -> Generation:
        """See `Runtime.generate`."""
        import torch
        import transformers

        ends = sorted(work.end_ids) or None
        config = transformers.GenerationConfig(
            do_sample=False,
            max_new_tokens=work.max_new_tokens,
            eos_token_id=ends,
            pad_token_id=ends[0] if ends else 0,
            use_cache=True,
        )
        # The model's own sampling defaults would be merged into ours, and may hold penalties.
        self._model.generation_config = transformers.GenerationConfig()
        with torch.inference_mode():
            self._wait_for_device()
            recording = Recording(work, self)
            prompt = torch.tensor([list(row) for row in rows], device=self._device)
            self._model.generate(
                prompt, attention_mask=torch.ones_like(prompt), generation_config=config, streamer=_Streamer(recording)
            )
            self._wait_for_device()
        return recording.finish()

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


class _Streamer:
    """A streamer in the sense of transformers: `put` gets the prompt first, then each token, on the CPU."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        if self._prompt_seen:
            self._recording.take(*map(int, value.flatten()))
        self._prompt_seen = True

    def end(self) -> None:
        """Called by transformers; the recording is finished when the device is."""
