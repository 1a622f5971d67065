"""Pipelines with attention in the layers of their decoder, for processes of their own, which need no torch."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import openvino_genai

from shearling.kernel.openvino_extension import load_packed, required_extensions

F32 = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def compare_pipelines(file: str) -> None:
    """A batch, beams, a chat that goes on, and one that takes back what it said."""
    xml = Path(file)
    properties = {**F32, "extensions": [str(library) for library in required_extensions(xml)]}
    fused = load_packed(xml, properties=properties).open_pipeline("CPU")
    stock = openvino_genai.LLMPipeline(
        str(xml.parent), "CPU", ATTENTION_BACKEND="SDPA", KV_CACHE_PRECISION="f32", **properties
    )
    config = openvino_genai.GenerationConfig(max_new_tokens=40, ignore_eos=True, apply_chat_template=False)
    prompts = ["Area man wins award", "Report: nation", "The quick brown fox jumps over"]
    for pipe in (fused, stock):
        pipe.set_generation_config(config)
    assert fused.generate(prompts).texts == stock.generate(prompts).texts
    beams = openvino_genai.GenerationConfig(max_new_tokens=12, num_beams=3, num_return_sequences=1, ignore_eos=True)
    assert fused.generate(prompts[:1], beams).texts == stock.generate(prompts[:1], beams).texts
    answers = []
    for pipe in (fused, stock):
        pipe.start_chat()
        answers.append([str(pipe.generate(prompt, config)) for prompt in prompts])
        pipe.finish_chat()
    assert answers[0] == answers[1]
    histories, config = [], openvino_genai.GenerationConfig(max_new_tokens=40, ignore_eos=True)
    for pipe in (fused, stock):
        history = openvino_genai.ChatHistory([{"role": "user", "content": prompts[0]}])
        first = pipe.generate(history, config).texts[0]
        turns = [("user", prompts[0]), ("assistant", first[:5]), ("user", prompts[1])]
        changed = openvino_genai.ChatHistory([{"role": role, "content": content} for role, content in turns])
        histories.append((first, pipe.generate(changed, config).texts[0]))
    assert histories[0] == histories[1]


def load_without_writing(file: str) -> None:
    xml = Path(file)
    extensions = [str(library) for library in required_extensions(xml)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    loaded = load_packed(xml, properties={**F32, "extensions": extensions})
    pipeline = loaded.open_pipeline("CPU")
    config = openvino_genai.GenerationConfig(max_new_tokens=8, ignore_eos=True, apply_chat_template=False)
    tokens = pipeline.generate(["Area man"], config).perf_metrics.get_num_generated_tokens()
    sys.stdout.write(f"{loaded.attention or 'in the layers'} {tokens}\n")
