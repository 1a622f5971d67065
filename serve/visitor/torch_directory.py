"""A Hugging Face directory in PyTorch on the CPU; the parent has refused what could run code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serve.visitor.fault import VisitorFault, last_words
from serve.visitor.greedy import TIMING_SOURCE, Integers, decode_greedily, likeliest


class VisitedTorch:
    """A decoder with the cache of transformers.

    Args:
        config: the `config.json` of the directory.
        options: as of `serve.runtimes.runtime.RunOptions`.
        own: none are known.

    Raises:
        VisitorFault: transformers cannot load it.
    """

    def __init__(self, config: Path, options: Mapping[str, Any], own: Mapping[str, str]) -> None:
        import torch
        import transformers

        self._torch = torch
        if options["threads"] is not None:
            torch.set_num_threads(options["threads"])
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                str(config.parent), local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
        except Exception as error:  # whatever the architecture raises
            raise VisitorFault(
                "ModelUnsupported", f"transformers cannot load it: {last_words(error)}", where=config.parent
            ) from error
        bf16 = options["precision"] == "bf16"
        self._model = model.to(torch.bfloat16 if bf16 else torch.float32).eval()
        self._past: Any = None
        self.facts = {
            "runtime": f"PyTorch {torch.__version__}, transformers {transformers.__version__}",
            "provider": "CPU",
            "precision": "bf16" if bf16 else "fp32",
            "settings": {"threads": str(torch.get_num_threads())},
            "timing_source": TIMING_SOURCE,
        }

    def generate(self, rows: Sequence[Sequence[int]], new_tokens: int) -> dict[str, Any]:
        """See `serve.visitor.greedy.decode_greedily`."""
        self._past = None
        with self._torch.inference_mode():
            return decode_greedily(self._step, rows, new_tokens)

    def _step(self, chunk: Integers, seen: int) -> Integers:
        mask = self._torch.ones((chunk.shape[0], seen + chunk.shape[1]), dtype=self._torch.long)
        ids = self._torch.from_numpy(chunk)
        out = self._model(input_ids=ids, attention_mask=mask, past_key_values=self._past, use_cache=True)
        self._past = out.past_key_values
        return likeliest(out.logits[:, -1:].float().numpy())
