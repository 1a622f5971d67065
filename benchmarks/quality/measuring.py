"""What the models of a cell score on the test rows, and the bits that they need for general text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.quality.cell import Cell, SubnetFigures, SubnetName, figures_of
from benchmarks.quality.general_text import GeneralText, bits_per_byte
from benchmarks.quality.served import dense_files, searched_files
from shearling.artefact import Artefact, open_artefact
from shearling.elastic.search_space import Choice
from shearling.elastic.super_network import SuperNetwork, load_super_network
from shearling.evaluation.evaluator import torch_scorer
from shearling.evaluation.task import TaskLocation
from shearling.evaluation.task_evaluator import TaskEvaluator, open_evaluator
from shearling.model.checkpoint import load_model, load_tokenizer
from shearling.run import Run, open_dense

if TYPE_CHECKING:
    from torch import nn


def bits_in_torch(model: nn.Module, tokenizer: Any, text: GeneralText) -> float:
    """Bits for a byte of text, in the precision that the machine is fast in."""
    return bits_per_byte(torch_scorer(model, tokenizer, precision="auto"), text)


def measure_cell(
    cell: Cell,
    run: Run,
    searched: tuple[Choice, dict[str, Any]] | None,
    text: GeneralText,
    *,
    llama_cpp: Path | None = None,
) -> Iterator[SubnetFigures]:
    """Every figure of a cell.

    Args:
        cell: which.
        run: where it was trained.
        searched: the sub-network that was found, and what was predicted of it; None where ranks are fixed.
        text: for bits per byte.
        llama_cpp: an environment with it, for what others serve.
    """
    evaluator = open_evaluator(TaskLocation(cell.task.name, run.task), head=cell.model.head, split="test")
    if cell.arm.adapted:
        yield _model_figures(evaluator, open_dense(run), text, subnet="adapted")
        if cell.ratio is not None:
            yield _model_figures(evaluator, open_artefact(run.sparse, kind="sparse"), text, subnet="frozen")
    network = load_super_network(run)
    space = network.space
    yield _figures(evaluator, network, text, subnet="largest", choice=space.maximal())
    if searched is not None:
        choice, predicted = searched
        yield _figures(evaluator, network, text, subnet="heuristic", choice=space.heuristic())
        yield _figures(evaluator, network, text, subnet="searched", choice=choice, predicted=predicted)
        if space.adapter.masked_training and not network.head:
            yield from searched_files(evaluator, run, text, on_grid=space.adapter.grid is not None)
    if cell.arm.served and not network.head:
        yield from dense_files(evaluator, run, text, llama_cpp=llama_cpp)


def _model_figures(
    evaluator: TaskEvaluator, frozen: Artefact, text: GeneralText, *, subnet: SubnetName
) -> SubnetFigures:
    model, tokenizer = load_model(frozen.path).eval(), load_tokenizer(frozen.path)
    evaluation = evaluator.on_torch(model, tokenizer, precision="auto")()
    return figures_of(evaluation, subnet=subnet, bits=bits_in_torch(model, tokenizer, text))


def _figures(
    evaluator: TaskEvaluator,
    network: SuperNetwork,
    text: GeneralText,
    *,
    subnet: SubnetName,
    choice: Choice,
    predicted: dict[str, Any] | None = None,
) -> SubnetFigures:
    network.activate(choice)
    with network.materialised():
        evaluation = evaluator.on_torch(network.model, network.tokenizer, precision="auto")()
        bits = None if network.head else bits_in_torch(network.model, network.tokenizer, text)
    return figures_of(evaluation, subnet=subnet, bits=bits, predicted=predicted)
