"""What each stage takes of memory and time on a model of a given size, for the table of docs/results/memory.md.

    python -m benchmarks.scale --shape 3b --output runs/scale [--stages base,prune,train,search]

Makes a Llama of this shape with random bfloat16 weights, shard by shard, and runs the stages on it, each in a process
of its own. What a stage takes depends on the sizes of the weights, not on what they say. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.command import command
from benchmarks.kept_files import keep_settings, whole_directory
from benchmarks.peak_memory import Measured, run_measured
from shearling.errors import UsageError
from shearling.resources import Estimate, in_words
from shearling.strict_json import write_text

if TYPE_CHECKING:
    from shearling.model.weight_shards import StoredTensor

RANKS = (16, 8)
ROWS = 96
TEXT = "Area man wins award for report number"


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama; its heads are 128 wide, or 16 where it is tiny."""

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool

    @property
    def parameters(self) -> int:
        """Number of weights."""
        width = self.hidden // self.heads * self.kv_heads
        layer = 2 * self.hidden * (self.hidden + width) + 3 * self.hidden * self.feed_forward + 2 * self.hidden
        return self.layers * layer + self.hidden * (self.vocabulary * (2 - self.tied) + 1)


SHAPES = {
    "tiny": Shape(64, 160, 2, 4, 2, 512, tied=True),
    "small": Shape(1024, 2816, 8, 8, 4, 32000, tied=True),
    "1b": Shape(2048, 8192, 16, 16, 8, 128256, tied=True),
    "3b": Shape(3072, 8192, 28, 24, 8, 128256, tied=True),
    "8b": Shape(4096, 14336, 32, 32, 8, 128256, tied=False),
}
"""The larger ones are those of Llama 3."""


@dataclass(frozen=True)
class Scale:
    """One run of the benchmark.

    Attributes:
        directory: holds the model, the data, the recipes and the run.
    """

    directory: Path
    samples: int
    seq_len: int

    @property
    def source(self) -> Path:
        """The random model."""
        return self.directory / "source"

    @property
    def run(self) -> Path:
        """The run directory of the stages."""
        return self.directory / "run"

    def recipe(self, name: str, *sections: str) -> Path:
        """Write a recipe of these sections; gives its path."""
        path = self.directory / f"{name}.toml"
        path.write_text("\n".join((_HEAD, *sections)), encoding="utf-8")
        return path


_HEAD = """schema = "shearling.recipe/1"
name = "scale"

[model]
model_id = "random/llama"
path = "source"

[task]
name = "parity"
path = "rows.jsonl"
text = "{{ headline }}"
prompt = "Headline: {{ text }}\\nEven:"
choices = [" no", " yes"]
gold = "{{ label }}"
max_length = 64
train_on_prompt = true
train_on_end = true
[task.split]
train = 0.5
validation = 0.4
test = 0.1
"""
_ADAPTER = f"""[adapter]
r = {RANKS[0]}
lora_alpha = {2 * RANKS[0]}

[[adapter.groups]]
name = "attention"
modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
ranks = {list(RANKS)}

[[adapter.groups]]
name = "feed_forward"
modules = ["gate_proj", "up_proj", "down_proj"]
ranks = {list(RANKS)}

[train]
steps = 3
batch_size = 4
gradient_checkpointing = true
memory = "lean"

[search]
algorithm = "random"
evaluations = 2
limit = 16
batch_size = 8
"""


def _sparsity(scale: Scale) -> str:
    return f"[sparsity]\n[sparsity.calibration]\nsamples = {scale.samples}\nseq_len = {scale.seq_len}\n"


def _base(scale: Scale) -> list[str]:
    return ["benchmarks.scale", "--only-base", "--output", str(scale.directory)]


def _prune(scale: Scale) -> list[str]:
    return ["train", "--recipe", str(scale.recipe("prune", _sparsity(scale))), "--output", str(scale.run)]


def _train(scale: Scale) -> list[str]:
    recipe = scale.recipe("train", _sparsity(scale), _ADAPTER)
    return ["train", "--recipe", str(recipe), "--output", str(scale.run)]


def _search(scale: Scale) -> list[str]:
    return ["search", "--run", str(scale.run), "--memory", "lean"]


def _part(name: str) -> Callable[[Scale], Estimate]:
    def expected(scale: Scale) -> Estimate:
        from shearling.model.figures import read_figures
        from shearling.recipe.recipe import read_recipe
        from train.estimates import estimate_stage

        recipe = read_recipe(scale.recipe("train", _sparsity(scale), _ADAPTER))
        return estimate_stage(recipe, read_figures(scale.source), by_tensors=True)[name]

    return expected


def _searched(scale: Scale) -> Estimate:
    from search.stage import LOCAL, estimate_by_recipe
    from shearling.run import Run

    return estimate_by_recipe(Run(scale.run), settings={}, rule={}, workforce=LOCAL, memory="lean")


@dataclass(frozen=True)
class Export:
    """One format, written from what the run has: the sub-network that was found, or else the model as it is.

    Random weights break the gates of integers, so that these are measured and reported only.
    """

    name: str
    format: str
    weight_format: str = "fp32"
    sparse: bool = False

    def command(self, scale: Scale) -> list[str]:
        """See `STAGES`."""
        option, source = self._source(scale)
        kernel = ["--sparse-kernel", self.format] if self.sparse else []
        rounding = ["--quantization", "fast"] if self.weight_format == "int4" else []
        what = ["--formats", self.format, "--weight-format", self.weight_format, *kernel, *rounding]
        output = ["--output", str(scale.run / self.name), "--force", "--verify", "warn"]
        return ["export", option, str(source), *what, *output]

    def estimate(self, scale: Scale) -> Estimate:
        """See `ESTIMATES`."""
        from export.plan import plan_frozen, plan_subnet
        from export.quantization.settings import Quantization
        from export.request import ExportRequest

        option, source = self._source(scale)
        request = ExportRequest(
            output=scale.run / self.name,
            formats=(self.format,),
            weight_format=self.weight_format,
            sparse_kernels=(self.format,) if self.sparse else (),
            quantization=Quantization("fast" if self.weight_format == "int4" else None),
            force=True,
        )
        return (plan_subnet if option == "--subnet" else plan_frozen)(source, request).estimate

    def _source(self, scale: Scale) -> tuple[str, Path]:
        best, sparse = scale.run / "search" / "best.json", scale.run / "sparse"
        if best.exists():
            return "--subnet", best
        return "--base", sparse if sparse.exists() else scale.run / "base"


EXPORTS = (
    Export("export-hf", "hf"),
    Export("export-openvino-int8", "openvino", "int8"),
    Export("export-openvino-sparse-int4", "openvino", "int4", sparse=True),
    Export("export-onnx-int4", "onnx", "int4"),
)

STAGES: dict[str, Callable[[Scale], list[str]]] = {
    "base": _base,
    "prune": _prune,
    "train": _train,
    "search": _search,
    **{item.name: item.command for item in EXPORTS},
}
"""Name -> what `python -m` is called with; each stage reads what those before it have left."""
ESTIMATES: dict[str, Callable[[Scale], Estimate]] = {
    "base": _part("base"),
    "prune": _part("sparse"),
    "train": _part("super_adapter"),
    "search": _searched,
    **{item.name: item.estimate for item in EXPORTS},
}
"""Name -> what the stage itself says that it will take."""


def measure(scale: Scale, stages: list[str]) -> Iterator[tuple[str, Measured, Estimate | None]]:
    """Run stages one after the other, as far as they succeed; gives their names, what they took, and what was said."""
    for stage in stages:
        # Before, since afterwards the stage's own files take the place that it asks for.
        expected = ESTIMATES[stage](scale) if stage in ESTIMATES else None
        found = run_measured(STAGES[stage](scale))
        yield stage, found, expected
        if found.exit_code:
            break


def as_row(stage: str, measured: Measured, expected: Estimate | None) -> str:
    """What was measured of a stage, in Markdown."""
    failed = f"exit {measured.exit_code}" if measured.exit_code else ""
    estimate = "" if expected is None else in_words(expected.memory_bytes)
    return f"| {stage} | {in_words(measured.peak_bytes)} | {estimate} | {measured.seconds:.0f} | {failed} |"


def heading(shape: Shape) -> str:
    """What stands above the rows."""
    size = f"{shape.parameters / 1e9:.2f} G weights, {in_words(2 * shape.parameters)} in bfloat16"
    return f"{size}\n\n| stage | peak of memory | estimate | seconds | |\n|---|---|---|---|---|"


def make_model(shape: Shape, directory: Path, *, max_shard_bytes: int | None = None) -> None:
    """Write a random Llama, with one tensor in memory at a time, and rows for its task beside it.

    Args:
        shape: of the model.
        directory: of the run of the benchmark; the model is in `source` there.
        max_shard_bytes: of a file; None for the usual one.
    """
    import torch

    from shearling.model.checkpoint import save_description
    from shearling.model.weight_shards import MAX_SHARD_BYTES, writing_weights
    from tests.support.tiny_models import tiny_tokenizer

    rows = (json.dumps({"headline": f"{TEXT} {number}", "label": number % 2}) for number in range(ROWS))
    generator, tensors = torch.Generator().manual_seed(0), stored_tensors(shape)
    with whole_directory(directory / "source") as source:
        write_text(directory / "rows.jsonl", "\n".join(rows) + "\n")
        with writing_weights(source, tensors, max_shard_bytes=max_shard_bytes or MAX_SHARD_BYTES) as writer:
            for name, tensor in tensors.items():
                value = torch.empty(tensor.shape, dtype=torch.bfloat16)
                # A norm of ones is left out of a graph, and no layer is recognised without it.
                mean, spread = (1.0, 0.05) if len(tensor.shape) == 1 else (0.0, 0.02)
                writer.write(name, value.normal_(mean, spread, generator=generator))
        save_description(empty_llama(shape), tiny_tokenizer(), source, "bfloat16")


def stored_tensors(shape: Shape) -> dict[str, StoredTensor]:
    """Name -> shape and type of every tensor of a model, in its order."""
    from shearling.model.weight_shards import StoredTensor

    parameters = empty_llama(shape).named_parameters()
    return {name: StoredTensor("bfloat16", tuple(parameter.shape)) for name, parameter in parameters}


def empty_llama(shape: Shape) -> Any:
    """A model of this shape, without weights."""
    from accelerate import init_empty_weights
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    with init_empty_weights(include_buffers=False):
        model = LlamaForCausalLM(config)
    model.tie_weights()
    return model


def make_base(scale: Scale) -> None:
    """The first artefact of the run, as `python -m train` makes it."""
    from train.base.artefact import import_base

    scale.run.mkdir(parents=True, exist_ok=True)
    import_base(scale.source, scale.run / "base", model_id="random/llama", force=True)


@command
def main(arguments: list[str]) -> int:
    """Make the model, run the stages, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="tiny")
    parser.add_argument("--layers", type=int, help="another number than the shape has")
    parser.add_argument("--stages", default=",".join(STAGES), help=f"of {', '.join(STAGES)}")
    parser.add_argument("--samples", type=int, default=8, help="windows of calibration text")
    parser.add_argument("--seq-len", type=int, default=64, help="tokens of a window")
    for step in ("only-model", "only-base"):
        parser.add_argument(f"--{step}", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    stages = options.stages.split(",")
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        parser.error(f"no stage {unknown[0]}: choose of {', '.join(STAGES)}")
    shape = SHAPES[options.shape]
    shape = replace(shape, layers=options.layers or shape.layers)
    scale = Scale(options.output, options.samples, options.seq_len)
    if options.only_base:
        make_base(scale)
        return 0
    if options.only_model:
        make_model(shape, scale.directory)
        return 0
    try:
        keep_settings(scale.directory, asdict(shape))
    except UsageError as error:
        parser.error(str(error))
    if not scale.source.exists():
        # In another process, so that what the stages inherit is small.
        made = run_measured(["benchmarks.scale", *arguments, "--only-model"])
        if made.exit_code:
            sys.stderr.write(made.log)
            return made.exit_code
    sys.stdout.write(heading(shape) + "\n")
    failed: Measured | None = None
    for stage, measured, expected in measure(scale, stages):
        # Each as it comes: the stages of a large model take hours.
        sys.stdout.write(as_row(stage, measured, expected) + "\n")
        sys.stdout.flush()
        failed = measured if measured.exit_code else None
    if failed is not None:
        sys.stderr.write(failed.log)
    return failed.exit_code if failed is not None else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
