"""What would be served of a cell's model, file by file, and what each scores: ours as integers without their zeros, a
dense one as its users serve it, by OpenVINO itself and by llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from benchmarks.peers import write_quantized
from benchmarks.quality.cell import LLAMA_CPP_FILES, ServedName, SubnetFigures, figures_of
from benchmarks.quality.general_text import GeneralText, bits_per_byte, write_other_passages
from export.quantization.settings import Preset, Quantization
from export.quantization.text import TASK_ROWS, CalibrationText
from export.request import ExportRequest
from export.stage import export_frozen, export_subnet
from search.stage import BEST_FILE
from shearling.artefact import open_artefact
from shearling.evaluation.given_model import find_given_model
from shearling.kernel.loading.packed_choice import PACKED
from shearling.run import Run, open_dense
from shearling.target import Target
from train.base.adaptation import write_adapted

if TYPE_CHECKING:
    from shearling.evaluation.task_evaluator import TaskEvaluator

Integers = Literal["int8", "int4"]


def searched_files(evaluator: TaskEvaluator, run: Run, text: GeneralText, *, on_grid: bool) -> Iterator[SubnetFigures]:
    """Of the sub-network that was found: integers, the zeros packed away.

    Args:
        evaluator: of the test rows.
        run: has a `best.json`.
        text: for bits per byte.
        on_grid: it was trained on integers of four bits, which are the only ones then.
    """
    best = run.search / BEST_FILE
    named: dict[Integers, ServedName] = (
        {"int4": "packed-int4"} if on_grid else {"int8": "packed", "int4": "packed-int4"}
    )
    for weights, name in named.items():
        request = _request(run, weights, kernels=("openvino",), preset=None if on_grid else "best")
        directory = export_subnet(best, request).path / "openvino"
        # As they are in the file, whatever is the fastest on this machine.
        yield _score(evaluator, Target(directory, properties={PACKED: "always"}), text, name)


def dense_files(
    evaluator: TaskEvaluator, run: Run, text: GeneralText, *, llama_cpp: Path | None
) -> Iterator[SubnetFigures]:
    """Of a dense model with its LoRA merged: what others serve.

    Args:
        evaluator: of the test rows.
        run: whose super-adapter is one LoRA on a dense model.
        text: for bits per byte.
        llama_cpp: an environment with it; without one its files are left out.
    """
    served = run.path / "served"
    write_adapted(open_dense(run), open_artefact(run.super_adapter, kind="super_adapter"), served, force=True)
    stock: dict[Integers, ServedName] = {"int8": "openvino-int8", "int4": "openvino-int4"}
    for weights, name in stock.items():
        # Ours too: their own exporters round further from the model (docs/quantization.md). Tuning the
        # scales would take as long as the LoRA.
        directory = export_frozen(served, _request(run, weights, preset="balanced")).path / "openvino"
        yield _score(evaluator, Target(directory), text, name)
    if llama_cpp is not None:
        files = run.path / "gguf"
        write_quantized(served, llama_cpp, files, CalibrationText(_texts(run), run.task))
        for name in LLAMA_CPP_FILES:
            target = Target(files / f"{name}.gguf", environment=llama_cpp)
            yield _score(evaluator, target, text, name)


def _request(
    run: Run, weights: Integers, *, kernels: tuple[str, ...] = (), preset: Preset | None = None
) -> ExportRequest:
    """An export to OpenVINO.

    Args:
        run: whose rows are a part of the text.
        weights: number format.
        kernels: formats whose zeros are packed away.
        preset: how integers of four bits are rounded on text; None where they were trained.
    """
    return ExportRequest(
        output=run.export,
        formats=("openvino",),
        weight_format=weights,
        sparse_kernels=kernels,
        quantization=Quantization(preset, dataset=_texts(run)) if preset and weights == "int4" else Quantization(),
        # The file itself is asked all test rows.
        verify="off",
        force=True,
    )


def _texts(run: Run) -> tuple[str, str]:
    """What integers are chosen on: the task's rows, and a general text."""
    general = run.path / "general.jsonl"
    write_other_passages(general)
    return TASK_ROWS, str(general)


def _score(evaluator: TaskEvaluator, target: Target, text: GeneralText, name: ServedName) -> SubnetFigures:
    with find_given_model(target).load("auto") as model:
        evaluation = model.measure(evaluator, lambda rows: None)
        return figures_of(evaluation, subnet=name, bits=bits_per_byte(model.scorer(), text))
