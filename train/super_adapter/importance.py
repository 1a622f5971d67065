"""How much each channel of an elastic width matters, and the order that follows.

    l1      sum of |W| over the rows that produce the channel
    wanda   sum of |W| ||x|| over the column that consumes it, x being its activations on calibration text

An attention is ordered by whole key-value heads, whose channels are summed. Equal importance keeps the original order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shearling.artefact import Artefact, sha256_file
from shearling.elastic.reordering import Reordering
from shearling.elastic.search_space import Group, SearchSpace
from shearling.evaluation.task import TaskRow
from shearling.model.head import classifies
from shearling.model.layers import find_layers
from shearling.recipe.width import WidthSection
from train.calibration import calibration_blocks, calibration_file

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH_SIZE = 4


def find_reordering(
    model: nn.Module,
    space: SearchSpace,
    section: WidthSection,
    *,
    frozen: Artefact,
    rows: Sequence[TaskRow],
    tokenizer: Any,
    seed: int,
) -> Reordering:
    """Order the channels of every width group, the most important first.

    Args:
        model: plain, in its original order; not modified.
        space: has the width groups.
        section: [width] of the recipe, with `reorder` other than "none".
        frozen: the artefact that the model was loaded from.
        rows: calibration text where the section names no file.
        tokenizer: of the model.
        seed: places the calibration windows.
    """
    from shearling.model.checkpoint import hash_weights

    if section.reorder == "l1":
        scores = {group.id: l1_importance(model, group) for group in space.width_groups}
    else:
        blocks = calibration_blocks(
            section.calibration,
            rows,
            tokenizer,
            classifies=classifies(frozen.path),
            seed=seed,
            where="width.calibration",
        )
        scores = wanda_importance(model, space, blocks)
    orders = {group_id: score.argsort(descending=True, stable=True) for group_id, score in scores.items()}
    return Reordering(section.reorder, hash_weights(frozen.path), orders)


def width_inputs(section: WidthSection | None) -> dict[str, str]:
    """What decides an order beside the recipe and the task: the file that it is calibrated on."""
    measured = section is not None and section.reorder == "wanda"
    file = calibration_file(section.calibration) if section is not None and measured else None
    return {} if file is None or not file.is_file() else {"width_text": sha256_file(file)}


def l1_importance(model: nn.Module, group: Group) -> Tensor:
    """[units] float32: absolute weights of the rows that produce each unit, over all members of the group."""
    import torch

    units = group.values[0] // (group.head_dim * group.group)
    members: list[Any] = [model.get_submodule(path) for path in (*group.modules, *group.grouped)]
    rows = [member.weight.detach().float().abs().reshape(units, -1).sum(dim=1) for member in members]
    return torch.stack(rows).sum(dim=0)


def wanda_importance(model: nn.Module, space: SearchSpace, calibration: Sequence[Tensor]) -> dict[str, Tensor]:
    """Group id -> [units] float32: Wanda scores of the columns that consume each unit, layer by layer on the dense
    model.
    """
    import torch

    from shearling.calibration.propagation import capture
    from train.sparsity.criteria.wanda import ChannelNorm, wanda_scores

    transformer, scores = find_layers(model), {}
    states = capture(model, transformer, calibration, batch_size=BATCH_SIZE)
    linears = transformer.linears()
    for index, layer in enumerate(transformer.layers):
        prefix = transformer.module_path(index, "")
        groups = [group for group in space.width_groups if group.consumers[0].startswith(prefix)]
        consumers = {path: linears[path] for group in groups for path in group.consumers}
        norms = {path: ChannelNorm() for path in consumers}
        states.watch(layer, [(linear, norms[path].add) for path, linear in consumers.items()])
        for group in groups:
            columns = torch.stack(
                [wanda_scores(linears[path].weight, norms[path], where=path).sum(dim=0) for path in group.consumers]
            ).sum(dim=0)
            scores[group.id] = columns.reshape(-1, group.head_dim * group.group).sum(dim=1)
        if index + 1 < len(transformer.layers):
            states.advance(layer)
    return scores
