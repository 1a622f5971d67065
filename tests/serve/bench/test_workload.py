"""Prompts: random ones, and traces of real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serve.bench import workload as limits
from serve.bench.measurement import Sample
from serve.bench.workload import Prompts, check_document_size, make_workload, read_trace
from serve.runtimes.deployment import Deployment, find_deployment
from shearling.errors import ArtefactError, DocumentInvalid, UsageError
from shearling.target import Target
from tests.support.tiny_models import tiny_tokenizer


@pytest.fixture(scope="module")
def deployment(export: Path) -> Deployment:
    return find_deployment(Target(export))


def trace_of(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_random_prompts_are_new_for_every_block_and_the_same_for_all(deployment: Deployment) -> None:
    prompts = Prompts([deployment, deployment], make_workload(12, 4, batch=3))
    (first, twin), new_tokens = prompts.draw()
    assert first == twin
    assert [len(row) for row in first] == [12] * 3
    assert new_tokens == 4
    assert len({*first, *prompts.draw()[0][0]}) == 6
    again = Prompts([deployment], make_workload(12, 4, batch=3))
    assert again.draw()[0][0] == first


def test_a_trace_is_encoded_and_never_repeats_a_prefix(deployment: Deployment, tmp_path: Path) -> None:
    path = trace_of(tmp_path / "trace.jsonl", {"prompt": "Area man"}, "", {"prompt": "Grüße aus 東京", "new_tokens": 9})
    workload = make_workload(1, 5, trace=path)
    assert [workload.new_tokens_in_words(blocks) for blocks in (1, 2, 3)] == ["5", "5 to 9", "5 to 9"]
    assert make_workload(1, 5).new_tokens_in_words(3) == "5"
    prompts = Prompts([deployment], workload)
    drawn = [prompts.draw() for _ in range(4)]
    texts = [tiny_tokenizer().decode(rows[0][0][1:]) for rows, _ in drawn]
    assert texts == ["Area man", "Grüße aus 東京"] * 2
    assert [new_tokens for _, new_tokens in drawn] == [5, 9, 5, 9]
    assert len(prompts.longest()[0][0][0]) == max(len(rows[0][0]) for rows, _ in drawn)
    assert drawn[0][0][0][0][0] != drawn[2][0][0][0][0]


@pytest.mark.parametrize(
    ("lines", "error", "match"),
    [
        ([], UsageError, "the trace is empty"),
        (["", "  "], UsageError, "the trace is empty"),
        ([{"prompt": "a"}, "{"], DocumentInvalid, r"trace\.jsonl:2.*malformed"),
        ([{"prompt": ""}], DocumentInvalid, r"trace\.jsonl:1.*prompt"),
        ([{"prompt": "a", "new_tokens": 0}], DocumentInvalid, "new_tokens"),
        ([{"prompt": "a", "tokens": 3}], DocumentInvalid, "tokens"),
        ([["a"]], DocumentInvalid, "expected a JSON object"),
    ],
)
def test_bad_traces(tmp_path: Path, lines: list[object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        read_trace(trace_of(tmp_path / "trace.jsonl", *lines))


def test_work_that_does_not_fit_the_context(deployment: Deployment, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exceed the context of 256"):
        Prompts([deployment], make_workload(250, 7))
    path = trace_of(tmp_path / "trace.jsonl", {"prompt": "a"}, {"prompt": "a b c d e f g " * 60})
    with pytest.raises(UsageError, match="exceed the context of 256"):
        Prompts([deployment], make_workload(1, 4, trace=path))


def test_the_size_of_a_document_is_not_underestimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One of two tokens, one of 900, and the former again.
    path = trace_of(tmp_path / "trace.jsonl", {"prompt": "\u6771" * 5000}, {"prompt": "b", "new_tokens": 900})
    workload = make_workload(16, 2, repeats=3, trace=path)
    samples = [
        Sample(
            subject=subject,
            session=0,
            block=block,
            position=0,
            started_s=1e5 / 3,
            prompt_tokens=100_000,
            batch=1,
            ttft_s=1e-4 / 3,
            gaps_s=(1e-4 / 3,) * (new_tokens - 1),
            total_s=1e2 / 3,
            waited_s=1e-4 / 3,
            lost_first_s=1e-4 / 3,
            lost_decode_s=1e-4 / 3,
            token_ids=(262_143,) * new_tokens,
            stolen_s=1e-4 / 3,
            preemptions=1_000_000,
            instructions=10**15,
        ).model_dump(mode="json")
        for block, new_tokens in enumerate((2, 900, 2))
        for subject in range(2)
    ]
    text = json.dumps({"samples": samples, "workload": workload.model_dump(mode="json")}, indent=2)
    monkeypatch.setattr(limits, "DOCUMENT_BYTES", len(text))
    with pytest.raises(UsageError, match=r"6 samples of 2 to 900 new tokens .*--output"):
        check_document_size(workload, deployments=2)
    monkeypatch.setattr(limits, "DOCUMENT_BYTES", 2 * len(text))
    check_document_size(workload, deployments=2)


def test_every_row_of_a_batch_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = make_workload(4, 500, repeats=2, sessions=1, batch=16)
    row = (262_143,) * 500
    samples = [{"gaps_s": [1e-4 / 3] * 499, "token_ids": row, "other_rows": [row] * 15}] * 2
    monkeypatch.setattr(limits, "DOCUMENT_BYTES", len(json.dumps({"samples": samples}, indent=2)))
    with pytest.raises(UsageError, match=r"2 samples of 500 new tokens .*--output"):
        check_document_size(workload, deployments=1)


def test_a_trace_makes_no_batch_and_needs_a_tokenizer(copy_of, tmp_path: Path) -> None:
    path = trace_of(tmp_path / "trace.jsonl", {"prompt": "a"})
    with pytest.raises(UsageError, match="make no batch"):
        make_workload(1, 4, trace=path, batch=2)
    directory = copy_of("openvino")
    (directory / "tokenizer.json").unlink()
    with pytest.raises(ArtefactError, match=r"tokenizer\.json"):
        Prompts([find_deployment(Target(directory))], make_workload(1, 4, trace=path))
