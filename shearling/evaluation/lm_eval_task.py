"""The task artefact as tasks of lm-evaluation-harness: YAML beside the rows, for this project and for anybody's
`lm_eval`.

    cd RUN/task && lm_eval --include_path . --tasks NAME_test --model hf --model_args pretrained=...

The harness resolves the data file against the working directory, hence the `cd`. A split is a task of its own, so that
whoever evaluates on validation rows never opens the test rows.

The rows are there a second time, as Parquet, which says what type a column has: `datasets`, by which the harness reads,
guesses it from JSONL, and turns texts that all look like dates into dates.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shearling.artefact import MANIFEST, open_artefact
from shearling.evaluation.task import OPTIONAL, TASK_FILE, Split, TaskLocation, TaskRow, iterate_rows, rows_file
from shearling.recipe.task import AnswerMetric

ACCURACY: Mapping[str, Any] = {
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
CHAT = "written_by_chat_template"
"""In a task's metadata: the harness leaves it alone."""
SURROGATES = re.compile(r"\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})")
METRICS = "shearling.evaluation.answer_metrics."
"""Where the harness finds what its own table of metrics lacks."""
EVALUATED_SPLITS: tuple[Split, ...] = ("validation", "test")
TABLE_BATCH = 1024
"""Rows that are in memory at a time when a table is written."""


@dataclass(frozen=True)
class GeneratedAnswer:
    """How an answer is found in generated text, and compared with the row's.

    Attributes:
        pattern: of the answer, a regular expression; None takes the whole text.
        match: which of several matches counts.
        ignore: regular expressions of what is removed from both before they are compared.
        metric: how they are compared.
        max_new_tokens: most tokens that are generated.
        stop: strings that end the generation.
    """

    pattern: str | None = None
    match: Literal["first", "last"] = "last"
    ignore: tuple[str, ...] = ()
    metric: AnswerMetric = "exact_match"
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()


def answer_task(name: str, split: Split) -> str:
    """Name of the task that measures accuracy."""
    return f"{name}_{split}"


def text_task(name: str, split: Split) -> str:
    """Name of the task that measures bits per byte of the raw text."""
    return f"{name}_{split}_text"


def verify_task(task: TaskLocation, split: Split) -> None:
    """Verify what an evaluation reads of a `task` artefact; nothing proves a directory of the user's own.

    Raises:
        ArtefactCorrupt: a file is missing or differs from the manifest.
        ArtefactMismatch: an artefact of another kind.
    """
    if task.directory is None or not (task.directory / MANIFEST).is_file():
        return
    listed = open_artefact(task.directory, kind="task", only=()).manifest.files
    open_artefact(task.directory, kind="task", only=evaluated_files(listed, task.name, split))


def evaluated_files(listed: Iterable[str], name: str, split: Split) -> tuple[str, ...]:
    """Those files of a `task` artefact that an evaluation reads.

    Args:
        listed: by its manifest; tasks of older versions have no table, and a task file of the user's own may stand
            beside the rows of a run.
        name: of the task.
        split: that is evaluated.
    """
    configs = (f"{of(name, split)}.yaml" for of in (answer_task, text_task))
    read = (TASK_FILE, rows_file(Path(), split).name, table_name(split), *configs)
    return tuple(file for file in read if file in set(listed))


def write_lm_eval_tasks(
    directory: Path,
    name: str,
    *,
    multiple_choice: bool,
    generated: GeneratedAnswer | None = None,
    chat: bool = False,
) -> None:
    """Write the task files of one data set, and the rows as the harness reads them.

    Accuracy of multiple choice is the share of rows whose gold choice has the highest log-likelihood; of generated
    answers the share of rows where the answer found in the text is the row's, or the mean F1 or ROUGE of the two; else
    it is the share of rows whose completion is what the model would generate greedily, token by token.

    Args:
        directory: where the JSONL files are; those of a split may be missing.
        name: of the task; the files define NAME_validation, NAME_validation_text, NAME_test and NAME_test_text.
        multiple_choice: whether rows carry choices.
        generated: how the answer is found, where rows carry one.
        chat: whether prompts are conversations, written by a chat template.

    Raises:
        DocumentInvalid: the rows are malformed.
    """
    for split in EVALUATED_SPLITS:
        if rows_file(directory, split).is_file():
            write_table(directory, split)
        answers = _answers(name, split, multiple_choice=multiple_choice, generated=generated)
        if chat:
            answers["metadata"] |= {CHAT: True}
        for config in (answers, _text(name, split)):
            # The name of a function has a tag before it.
            text = _as_yaml(config).replace(f'"metric": "{METRICS}', f'"metric": !function "{METRICS}')
            (directory / f"{config['task']}.yaml").write_text(f"{text}\n", encoding="utf-8")


def _as_yaml(config: Mapping[str, Any]) -> str:
    """JSON, which quotes every string and is YAML but for characters beyond U+FFFF: YAML has no pairs of surrogates."""

    def joined(pair: re.Match[str]) -> str:
        return f"\\U{ord(bytes.fromhex(pair[1] + pair[2]).decode('utf-16-be')):08x}"

    return SURROGATES.sub(joined, json.dumps(config, indent=2))


def table_name(split: Split) -> str:
    """Name of the file that the harness reads."""
    return f"{split}.parquet"


def write_table(directory: Path, split: Split) -> None:
    """Write the rows of one split once more, as a table whose columns have types.

    Raises:
        ArtefactMissing: there are no such rows.
        DocumentInvalid: they are malformed; names the line.
    """
    import pyarrow
    import pyarrow.parquet

    text, number = pyarrow.string(), pyarrow.int64()
    types = dict.fromkeys(TaskRow.model_fields, text)
    types |= {"choices": pyarrow.list_(text), "gold": number, "learnt": pyarrow.list_(pyarrow.list_(number))}
    rows = iterate_rows(directory, split)
    batch = list(itertools.islice(rows, TABLE_BATCH))
    # All rows of a task have them, or none has.
    absent = {name for name in OPTIONAL if all(getattr(row, name) is None for row in batch)}
    schema = pyarrow.schema([(name, kind) for name, kind in types.items() if name not in absent])
    with pyarrow.parquet.ParquetWriter(directory / table_name(split), schema) as writer:
        while batch:
            records = [row.model_dump(mode="json") for row in batch]
            writer.write_batch(pyarrow.RecordBatch.from_pylist(records, schema=schema))
            batch = list(itertools.islice(rows, TABLE_BATCH))


def _answers(name: str, split: Split, *, multiple_choice: bool, generated: GeneratedAnswer | None) -> dict[str, Any]:
    if generated is not None:
        shape = _generation(generated)
    elif multiple_choice:
        shape = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold", **ACCURACY}
    else:
        shape = {"output_type": "loglikelihood", "doc_to_target": "completion", **ACCURACY}
    # Names of columns, not templates: Jinja would drop a prompt's last line break.
    return {"task": answer_task(name, split), **_source(split), "doc_to_text": "prompt", **shape}


def _generation(generated: GeneratedAnswer) -> dict[str, Any]:
    find: dict[str, Any] = {"function": "remove_whitespace"}
    if generated.pattern is not None:
        place = 0 if generated.match == "first" else -1
        find = {"function": "regex", "regex_pattern": generated.pattern, "group_select": place}
    name = generated.metric if generated.metric == "exact_match" else f"{METRICS}{generated.metric}"
    metric = {"metric": name, "aggregation": "mean", "higher_is_better": True}
    return {
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {
            "until": list(generated.stop),
            "max_gen_toks": generated.max_new_tokens,
            "do_sample": False,
        },
        "filter_list": [{"name": "answer", "filter": [find, {"function": "take_first"}]}],
        "metric_list": [{**metric, **({"regexes_to_ignore": list(generated.ignore)} if generated.ignore else {})}],
    }


def _text(name: str, split: Split) -> dict[str, Any]:
    metrics = [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}]
    shape = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text"}
    return {"task": text_task(name, split), **_source(split), **shape, "metric_list": metrics}


def _source(split: Split) -> dict[str, Any]:
    return {
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {split: table_name(split)}},
        f"{split}_split": split,
        "target_delimiter": "",
        "metadata": {"version": 1.0},
    }
