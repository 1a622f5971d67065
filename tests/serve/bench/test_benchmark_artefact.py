"""Benchmarks that are interrupted, continued, drawn; and histories of one machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from serve.bench.benchmark import Benchmark, run_benchmark, summarise
from serve.bench.benchmark_artefact import read_benchmark, run_into
from serve.bench.comparison import compare_benchmarks
from serve.bench.measurement import MeasuredBlocks
from serve.bench.page import write_history, write_page
from serve.bench.screen import benchmark_screen, comparison_screen
from serve.bench.unfinished import continue_from, keep
from serve.bench.worker_process import LoadReport, ProcessReport
from serve.bench.workload import TraceItem, make_workload
from serve.guard.baseline import check_baseline
from serve.guard.regression import guard_workload
from serve.runtimes.runtime import RunOptions
from shearling.command_line import Terminated
from shearling.errors import UsageError
from shearling.strict_json import MAX_BYTES, write_document
from shearling.target import Target
from tests.support.environments import environment_with
from tests.support.serve_command import serve

OPTIONS = RunOptions(precision="fp32", threads=1)
LONG = ["--prompt-tokens", "16", "--max-new-tokens", "16", "--repeats", "40", "--threads", "1", "--json"]


def bench(export: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "serve",
        "bench",
        str(export),
        f"{export}@format=onnx",
        *LONG,
        "--output",
        str(output),
        *more,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def continued(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark that was interrupted after its first blocks, and continued."""
    output = tmp_path_factory.mktemp("continued") / "benchmark"
    kept = output.with_name(".benchmark.partial") / "unfinished.json"
    first = bench(export, output)
    while not kept.exists():
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGINT)
    _, told = first.communicate()
    assert first.returncode == 130
    assert "run the same command again" in told
    assert not output.exists()
    blocks = len(json.loads(kept.read_text())["samples"]) // 2
    assert 1 <= blocks < 40
    second = bench(export, output)
    out, told = second.communicate()
    assert second.returncode == 0, told
    assert f"continuing after {blocks} finished blocks" in told
    assert json.loads(out)["samples"][:2] == json.loads((output / "benchmark.json").read_text())["samples"][:2]
    return output


def test_an_interrupted_run_keeps_its_blocks(continued: Path) -> None:
    benchmark = read_benchmark(continued)
    assert [sample.block for sample in benchmark.samples[::2]] == list(range(40))
    assert {sample.session for sample in benchmark.samples} == {0, 1}
    assert [sample.subject for sample in benchmark.samples[:4]] == [0, 1, 1, 0]
    assert benchmark.subjects[0].load_s.samples == 2
    assert not (continued / "unfinished.json").exists()


def measured(benchmark: Benchmark) -> MeasuredBlocks:
    """What a run of it would have kept after its last block."""
    loads = [
        [LoadReport(import_s=1, load_s=1, memory_before_bytes=1, facts=subject.facts)] for subject in benchmark.subjects
    ]
    report = ProcessReport(peak_bytes=1, private_bytes=1, huge_bytes=0, cpus=(0,), nice=0)
    return MeasuredBlocks(loads, [[report] for _ in loads], list(benchmark.samples))


def test_many_long_samples_are_read_again(continued: Path, tmp_path: Path) -> None:
    benchmark = read_benchmark(continued)
    long = benchmark.samples[0].model_copy(update={"gaps_s": (0.012345678901234567,) * 1023})
    many = benchmark.model_copy(update={"samples": (long,) * 600})
    write_document(tmp_path / "benchmark.json", many)
    assert (tmp_path / "benchmark.json").stat().st_size > MAX_BYTES
    assert read_benchmark(tmp_path / "benchmark.json") == many
    asked = ([subject.deployment for subject in many.subjects], many.options, many.workload)
    keep(tmp_path, *asked, measured(many))
    found = continue_from(tmp_path, *asked)
    assert found is not None
    assert len(found.samples) == 600


@pytest.mark.parametrize(
    ("key", "told"),
    [("machine_id", "on another machine"), ("openvino", "openvino 2020.1, now 20"), ("numpy", "numpy 2020.1, now ")],
)
def test_blocks_of_other_versions_or_another_machine_are_not_mixed(
    continued: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, told: str
) -> None:
    benchmark = read_benchmark(continued)
    asked = ([subject.deployment for subject in benchmark.subjects], benchmark.options, benchmark.workload)
    keep(tmp_path, *asked, measured(benchmark))
    document = json.loads((tmp_path / "unfinished.json").read_text())
    environment = document["environment"]
    if key == "machine_id":
        environment[key] = "0" * 64
    else:
        environment["versions"][key] = "2020.1"
    (tmp_path / "unfinished.json").write_text(json.dumps(document))
    assert continue_from(tmp_path, *asked) is None
    assert told in capsys.readouterr().err


def test_a_busier_machine_is_the_same(continued: Path, tmp_path: Path) -> None:
    benchmark = read_benchmark(continued)
    asked = ([subject.deployment for subject in benchmark.subjects], benchmark.options, benchmark.workload)
    keep(tmp_path, *asked, measured(benchmark))
    document = json.loads((tmp_path / "unfinished.json").read_text())
    document["environment"]["load_average"] = 99.0
    (tmp_path / "unfinished.json").write_text(json.dumps(document))
    assert continue_from(tmp_path, *asked) is not None


def test_an_environment_of_its_own_counts_with_its_versions(continued: Path, tmp_path: Path) -> None:
    environment = environment_with(tmp_path / "venv", module="openvino", source="", distribution="openvino")
    benchmark = read_benchmark(continued)
    deployment = benchmark.subjects[0].deployment.model_copy(update={"environment": environment})
    keep(tmp_path, [deployment], benchmark.options, benchmark.workload, measured(benchmark))
    versions = json.loads((tmp_path / "unfinished.json").read_text())["environment"]["versions"]
    assert versions[f"openvino in {environment}"] == "0.0.1" != versions["openvino"]


def test_what_could_not_be_read_again_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"12000 samples of 1024 new tokens take up to \d+ MiB, and at most 256"):
        run_into(
            tmp_path / "benchmark",
            [Target(tmp_path / "a"), Target(tmp_path / "b")],
            options=OPTIONS,
            workload=make_workload(16, 1024, repeats=6000),
        )


@pytest.mark.parametrize("signal", [KeyboardInterrupt, Terminated])
def test_an_interrupted_run_that_is_kept_nowhere_shows_its_blocks(
    export: Path, signal: type[KeyboardInterrupt | Terminated]
) -> None:
    def interrupt(_samples: object) -> bool:
        raise signal

    shown: list[Benchmark] = []
    with pytest.raises(signal):
        run_benchmark(
            [Target(export)],
            options=OPTIONS,
            workload=make_workload(16, 8),
            enough=interrupt,
            on_interrupt=shown.append,
        )
    assert len(shown[0].samples) == 1
    assert shown[0].subjects[0].metrics["ttft_s"].samples == 1


def test_the_page_shows_every_subject_and_loads_nothing(continued: Path) -> None:
    page = (continued / "benchmark.html").read_text()
    assert page.count("<svg") == 5
    assert "within each block" in page
    assert page.count('class="dot"') > 4 * 40
    assert "http" not in page
    assert "<script" not in page


def test_what_is_said_of_all_gaps_is_of_all(continued: Path, tmp_path: Path) -> None:
    benchmark = read_benchmark(continued)
    # A quarter of the blocks, with more than 1000 gaps, before the machine became slower: half of the first process, of
    # which both that are drawn may be.
    samples = tuple(
        sample.model_copy(update={"gaps_s": (0.001 if sample.block < 10 else 0.002,) * 150})
        for sample in benchmark.samples
        if sample.subject == 0
    )
    slower = benchmark.model_copy(update={"samples": samples, "subjects": benchmark.subjects[:1]})
    write_page(tmp_path / "page.html", slower)
    page = (tmp_path / "page.html").read_text()
    assert "2 [1, 2], 6000 values" in page[page.index("Every gap between two tokens") :]


def test_a_history_is_of_one_machine_and_one_work(continued: Path, tmp_path: Path) -> None:
    benchmark = read_benchmark(continued)
    later = benchmark.model_copy(update={"created": "2999-01-01T00:00:00Z"})
    write_history(tmp_path / "history.html", [later, benchmark])
    page = (tmp_path / "history.html").read_text()
    assert page.index(benchmark.created[:16]) < page.index("2999-01-01")
    for other in (
        {"workload": benchmark.workload.model_copy(update={"new_tokens": 7})},
        {"options": benchmark.options.model_copy(update={"threads": 7})},
        {"options": benchmark.options.model_copy(update={"precision": "bf16"})},
        {"environment": benchmark.environment.model_copy(update={"machine_id": "0" * 64})},
    ):
        with pytest.raises(UsageError, match=r"different|another"):
            write_history(tmp_path / "history.html", [benchmark, benchmark.model_copy(update=other)])
    more = benchmark.model_copy(update={"workload": benchmark.workload.model_copy(update={"repeats": 41})})
    write_history(tmp_path / "history.html", [benchmark, more])


@pytest.mark.slow
def test_a_baseline_of_this_machine_and_no_other(export: Path, tmp_path: Path) -> None:
    path, workload = tmp_path / "baseline.json", guard_workload(16, 8)

    def check(
        max_ratio: float, *, record: bool = False, options: RunOptions = OPTIONS, allow_other_versions: bool = False
    ) -> str:
        verdict, _ = check_baseline(
            Target(export),
            path,
            max_ratio=max_ratio,
            options=options,
            workload=workload,
            record=record,
            allow_other_versions=allow_other_versions,
        )
        return verdict.outcome

    assert check(1.05, record=True) == "pass"
    assert len(json.loads(path.read_text())["entries"]) == 1
    assert check(20.0, record=True) == "pass"
    document = json.loads(path.read_text())
    assert [len(entry["values"]["tpot_s"]) for entry in document["entries"]] == [16, 16]
    assert check(0.05, record=True) == "regression"
    assert json.loads(path.read_text()) == document
    with pytest.raises(UsageError, match="other flags"):
        check(20.0, options=OPTIONS.model_copy(update={"threads": 2}))
    document["environment"]["versions"]["openvino"] = "2020.1"
    path.write_text(json.dumps(document))
    with pytest.raises(UsageError, match=r"other versions: openvino 2020\.1"):
        check(20.0)
    assert check(20.0, allow_other_versions=True) == "pass"
    with pytest.raises(UsageError, match=r"other versions: openvino 2020\.1 .*in another file"):
        check(20.0, allow_other_versions=True, record=True)
    document["environment"]["machine_id"] = "0" * 64
    path.write_text(json.dumps(document))
    with pytest.raises(UsageError, match="another machine"):
        check(20.0, allow_other_versions=True)


def test_names_with_brackets_stay_apart(continued: Path) -> None:
    """Rich takes what stands in brackets for its own."""
    found = read_benchmark(continued)
    names = ("m[int8]", "m[int4]")
    subjects = tuple(
        subject.model_copy(update={"deployment": subject.deployment.model_copy(update={"label": name})})
        for subject, name in zip(found.subjects, names, strict=True)
    )
    named = found.model_copy(update={"subjects": subjects})
    for screen, tables in ((benchmark_screen(named), 2), (comparison_screen(compare_benchmarks(named, named)), 1)):
        console = Console(width=80)
        with console.capture() as captured:
            console.print(screen)
        assert [captured.get().count(name) >= tables for name in names] == [True, True]


@pytest.mark.parametrize(
    ("asked", "told"),
    [(True, "50% of the private memory was moved into huge pages"), (False, "50% of the private memory lies in huge")],
)
def test_huge_pages_are_told_as_they_were_asked_for(continued: Path, asked: bool, told: str) -> None:
    found = read_benchmark(continued)
    subjects = tuple(
        subject.model_copy(update={"private_memory_bytes": 2, "huge_memory_bytes": 1}) for subject in found.subjects
    )
    options = found.options.model_copy(update={"huge_pages": asked})
    console = Console(width=120)
    with console.capture() as captured:
        console.print(benchmark_screen(found.model_copy(update={"subjects": subjects, "options": options})))
    assert told in captured.get()
    assert ("--no-huge-pages measures without" in captured.get()) == asked


def test_huge_pages_that_a_process_did_not_get_are_told(continued: Path) -> None:
    found = read_benchmark(continued)
    subjects = tuple(
        subject.model_copy(update={"huge_shares": shares})
        for subject, shares in zip(found.subjects, ((1.0, 1.0), (1.0, 0.25)), strict=True)
    )
    console = Console(width=200)
    with console.capture() as captured:
        console.print(benchmark_screen(found.model_copy(update={"subjects": subjects})))
    assert "granted in part" in captured.get()
    assert "25%" in captured.get()
    assert "--sessions 5 or more shows it" in captured.get()


def test_intervals_of_few_processes_say_so(continued: Path, tmp_path: Path) -> None:
    found = read_benchmark(continued)
    many = tuple(sample.model_copy(update={"session": sample.block // 8}) for sample in found.samples)
    for benchmark, told in ((found, True), (found.model_copy(update={"samples": many}), False)):
        console = Console(width=200)
        with console.capture() as captured:
            console.print(benchmark_screen(benchmark))
            console.print(comparison_screen(compare_benchmarks(found, benchmark)))
            console.print(comparison_screen(compare_benchmarks(benchmark, benchmark)))
        words = f"The intervals are of {found.sessions} processes of each model alone"
        assert captured.get().count(words) == (3 if told else 1)
        write_page(tmp_path / "page.html", benchmark)
        assert (words in (tmp_path / "page.html").read_text()) == told


def test_intervals_are_of_processes_and_of_their_blocks(continued: Path) -> None:
    """Two that differ by half leave open where between them the others lie."""
    found = read_benchmark(continued)
    measured_samples = tuple(
        sample.model_copy(update={"gaps_s": (0.01 * (1 + 0.5 * sample.session) + 1e-6 * sample.block,) * 15})
        for sample in found.samples
    )
    asked = {"options": found.options, "workload": found.workload, "environment": found.environment}
    again = found.model_copy(update={"samples": measured_samples})
    estimate = (
        summarise([subject.deployment for subject in found.subjects], measured(again), **asked)
        .subjects[0]
        .metrics["tpot_s"]
    )
    assert (estimate.low, estimate.high) == (pytest.approx(0.01, rel=0.01), pytest.approx(0.015, rel=0.01))


def with_trace(benchmark: Benchmark, *, prompts: int, blocks: int) -> Benchmark:
    trace = tuple(TraceItem(prompt="a", new_tokens=number + 2) for number in range(prompts))
    return benchmark.model_copy(
        update={
            "workload": benchmark.workload.model_copy(update={"trace": trace}),
            "samples": tuple(sample for sample in benchmark.samples if sample.block < blocks),
        }
    )


def test_other_prompts_of_a_trace_are_other_work(continued: Path, tmp_path: Path) -> None:
    found = read_benchmark(continued)
    few, all_of_them, twice = (with_trace(found, prompts=12, blocks=blocks) for blocks in (3, 12, 24))
    compare_benchmarks(all_of_them, twice)
    for other in (few, with_trace(found, prompts=12, blocks=13)):
        with pytest.raises(UsageError, match=r"other prompts of the trace.*--repeats 12"):
            compare_benchmarks(other, all_of_them)
        with pytest.raises(UsageError, match="other prompts of the trace"):
            write_history(tmp_path / "history.html", [other, twice])
        compare_benchmarks(other, other)


def test_what_a_trace_says_itself_makes_no_other_work(continued: Path) -> None:
    whole = with_trace(read_benchmark(continued), prompts=12, blocks=12)

    def asked(benchmark: Benchmark, **more: object) -> Benchmark:
        return benchmark.model_copy(update={"workload": benchmark.workload.model_copy(update=more)})

    compare_benchmarks(whole, asked(whole, prompt_tokens=99, new_tokens=99))
    lines = (TraceItem(prompt="a"), *whole.workload.trace[1:])
    with pytest.raises(UsageError, match="another new_tokens"):
        compare_benchmarks(asked(whole, trace=lines), asked(whole, trace=lines, new_tokens=99))
    with pytest.raises(UsageError, match="another prompt_tokens"):
        compare_benchmarks(asked(whole, trace=()), asked(whole, trace=(), prompt_tokens=99))


@pytest.mark.parametrize(
    ("blocks", "prompts", "new_tokens", "unreached"),
    [(3, "3 of the 12 prompts of a trace", "2 to 4", "9"), (20, "12 prompts of a trace", "2 to 13", None)],
)
def test_prompts_that_were_not_reached_are_told(
    continued: Path, tmp_path: Path, blocks: int, prompts: str, new_tokens: str, unreached: str | None
) -> None:
    benchmark = with_trace(read_benchmark(continued), prompts=12, blocks=blocks)
    console = Console(width=200)
    with console.capture() as captured:
        console.print(benchmark_screen(benchmark))
    write_page(tmp_path / "page.html", benchmark)
    for text in (captured.get(), (tmp_path / "page.html").read_text()):
        assert f"{prompts}, {new_tokens} new" in text
        assert ("that were not reached" in text) == (unreached is not None)
        assert unreached is None or f"that were not reached: {unreached}; --repeats 12 measures each" in text


def test_a_history_replaces_nothing_unasked_and_nothing_that_it_is_made_from(continued: Path, tmp_path: Path) -> None:
    there, own = tmp_path / "keep.html", continued / "benchmark.json"
    there.write_text("mine")
    before = own.read_bytes()

    def refused(output: Path, *more: str) -> str:
        done = serve("history", continued, "--output", output, *more)
        assert done.returncode == 2, done.stderr
        return done.stderr

    assert "the output exists. Choose another, or replace it with --force" in refused(there)
    assert there.read_text() == "mine"
    assert "no file can be written here" in refused(tmp_path / "absent" / "page.html")
    assert "lies in what it is made from" in refused(own, "--force")
    assert "lies in what it is made from" in refused(continued / "history.html")
    assert own.read_bytes() == before
    done = serve("history", continued, "--output", there, "--force")
    assert done.returncode == 0, done.stderr
    assert "<svg" in there.read_text()
