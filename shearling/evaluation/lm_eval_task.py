"""The task artefact as tasks of lm-evaluation-harness: YAML beside the JSONL, for this project and for anybody's
`lm_eval`.

    cd RUN/task && lm_eval --include_path . --tasks NAME_test --model hf --model_args pretrained=...

The harness resolves the data file against the working directory, hence the `cd`. A split is a task of its own, so that
whoever evaluates on validation rows never opens the test rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shearling.evaluation.task import Split, rows_file

EVALUATED_SPLITS: tuple[Split, ...] = ("validation", "test")


def answer_task(name: str, split: Split) -> str:
    """Name of the task that measures accuracy."""
    return f"{name}_{split}"


def text_task(name: str, split: Split) -> str:
    """Name of the task that measures bits per byte of the raw text."""
    return f"{name}_{split}_text"


def write_lm_eval_tasks(directory: Path, name: str, *, multiple_choice: bool) -> None:
    """Write the task files of one data set.

    Accuracy of multiple choice is the share of rows whose gold choice has the highest log-likelihood; without choices
    it is the share of rows whose completion is what the model would generate greedily.

    Args:
        directory: where the JSONL files are.
        name: of the task; the files define NAME_validation, NAME_validation_text, NAME_test and NAME_test_text.
        multiple_choice: whether rows carry choices.
    """
    for split in EVALUATED_SPLITS:
        for config in (_answers(name, split, multiple_choice=multiple_choice), _text(name, split)):
            # JSON is YAML, and quotes every string.
            (directory / f"{config['task']}.yaml").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _answers(name: str, split: Split, *, multiple_choice: bool) -> dict[str, Any]:
    metrics = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    # Names of columns, not templates: Jinja would drop a prompt's last line break.
    shape: Mapping[str, Any] = {"output_type": "loglikelihood", "doc_to_target": "completion"}
    if multiple_choice:
        shape = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold"}
    return {
        "task": answer_task(name, split),
        **_source(split),
        **shape,
        "doc_to_text": "prompt",
        "metric_list": metrics,
    }


def _text(name: str, split: Split) -> dict[str, Any]:
    metrics = [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}]
    shape = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text"}
    return {"task": text_task(name, split), **_source(split), **shape, "metric_list": metrics}


def _source(split: Split) -> dict[str, Any]:
    return {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {split: rows_file(Path(), split).as_posix()}},
        f"{split}_split": split,
        "target_delimiter": "",
        "metadata": {"version": 1.0},
    }
