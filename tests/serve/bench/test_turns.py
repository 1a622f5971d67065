"""Processes that generate at once and take turns: their times, their tokens, and their ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.gguf_writer import write_gguf
from serve.bench.benchmark import find_deployments
from serve.bench.measurement import MeasuredBlocks, measure
from serve.bench.turns import can_take_turns, generate_in_turns, without_stops
from serve.bench.worker_process import Timed, WorkerProcess
from serve.bench.workload import make_workload
from serve.guard.regression import TURN_S, guard_workload
from serve.runtimes.deployment import Deployment, find_deployment
from serve.runtimes.runtime import Generation, RunOptions
from serve.visitor.genai import prompt_of, read_generation
from shearling.errors import RuntimeCrashed, ShearlingError
from shearling.target import Target, parse_target
from tests.support.environments import environment_with
from tests.support.stand_in_llama import stand_in
from tests.support.tiny_models import llama_tied_gqa, tiny_tokenizer

PROMPT = ((5, 6, 7, 8),)


@pytest.fixture(scope="module")
def deployment(export: Path) -> Deployment:
    return find_deployment(Target(export / "openvino"))


@pytest.fixture
def workers(deployment: Deployment) -> Iterator[list[WorkerProcess]]:
    with ExitStack() as stack:
        found = [stack.enter_context(WorkerProcess(deployment, RunOptions(threads=1))) for _ in range(2)]
        for worker in found:
            worker.load()
            worker.generate(PROMPT, new_tokens=8)
            worker.settle()
        yield found


def timed(
    *,
    started_s: float,
    ttft_s: float,
    gaps_s: tuple[float, ...],
    prepared_s: float = 0.0,
    waited_s: float | None = 0.0,
) -> Timed:
    total_s = ttft_s + sum(gaps_s)
    generation = Generation(
        token_ids=(1,), started_s=started_s + prepared_s, ttft_s=ttft_s, gaps_s=gaps_s, total_s=total_s
    )
    wall_s = prepared_s + total_s + 1
    return Timed(generation=generation, started_s=started_s, wall_s=wall_s, waited_s=waited_s, stolen_s=1.0)


def test_what_a_process_stood_still_is_taken_out_of_the_phase_that_it_fell_into() -> None:
    # It ran from 9 to 12, from 14 to 15.5, and from 17 on; it saw its first token at 14.5, others at 15, 18 and 19.
    seen = timed(started_s=10.0, ttft_s=4.5, gaps_s=(0.5, 3.0, 1.0))
    found = without_stops(seen, [(9.0, 12.0), (14.0, 15.5), (17.0, 21.0)])
    assert found.generation.ttft_s == pytest.approx(2.5)
    assert found.generation.gaps_s == pytest.approx((0.5, 1.5, 1.0))
    assert found.generation.total_s == pytest.approx(5.5)
    assert found.wall_s == pytest.approx(6.5)
    assert found.stolen_s == pytest.approx(0.65)
    assert found.generation.token_ids == seen.generation.token_ids


def test_one_turn_changes_nothing() -> None:
    seen = timed(started_s=10.0, ttft_s=4.5, gaps_s=(0.5, 3.0))
    found = without_stops(seen, [(9.0, 30.0)])
    assert found.generation.gaps_s == pytest.approx(seen.generation.gaps_s)
    assert (found.generation.ttft_s, found.wall_s) == pytest.approx((4.5, 9.0))


def test_a_stop_before_it_began_moves_nothing() -> None:
    # Asked at 10, it began at 15; it ran until 11 and from 14 to 17, and from 20 on.
    seen = timed(started_s=10.0, prepared_s=5.0, ttft_s=1.0, gaps_s=(0.5, 4.0))
    found = without_stops(seen, [(9.0, 11.0), (14.0, 17.0), (20.0, 23.0)])
    assert found.generation.ttft_s == pytest.approx(1.0)
    assert found.generation.gaps_s == pytest.approx((0.5, 1.0))
    assert found.generation.total_s == pytest.approx(2.5)
    assert found.wall_s == pytest.approx(5.5)


def test_its_clock_begins_after_the_call_and_ends_before_it(workers: list[WorkerProcess]) -> None:
    for worker in workers:
        found = worker.generate(PROMPT, new_tokens=8)
        began_s = found.generation.started_s
        assert found.started_s < began_s
        assert began_s + found.generation.total_s < found.started_s + found.wall_s


def test_the_clock_of_genai_is_read_and_not_guessed(export: Path) -> None:
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(str(export / "openvino"), "CPU")
    config = openvino_genai.GenerationConfig(max_new_tokens=4, ignore_eos=True)
    called_s = time.perf_counter()
    result = pipeline.generate(prompt_of(PROMPT), config)
    # What it falls back on, where the stamps are of another clock or unit, is the time of the call.
    assert called_s <= read_generation(result, 1, 0.0)["started_s"] < time.perf_counter()
    after_s = time.perf_counter()
    assert read_generation(result, 1, after_s)["started_s"] == after_s


def test_waits_never_leave_a_time_of_nothing() -> None:
    seen = timed(started_s=10.0, ttft_s=4.0, gaps_s=(1.0,), waited_s=5.9)
    found = without_stops(seen, [(9.0, 11.0), (15.5, 17.0)])
    assert found.waited_s is not None
    assert found.waited_s < found.wall_s


def test_both_say_what_they_say_alone_and_one_runs_at_a_time(workers: list[WorkerProcess]) -> None:
    alone = [worker.generate(PROMPT, new_tokens=48).generation.token_ids for worker in workers]
    started_s = time.perf_counter()
    both = generate_in_turns([(worker, PROMPT) for worker in workers], new_tokens=48, turn_s=0.001)
    elapsed_s = time.perf_counter() - started_s
    assert [item.generation.token_ids for item in both] == alone
    assert sum(item.generation.total_s for item in both) <= elapsed_s
    assert all(gap > 0 for item in both for gap in item.generation.gaps_s)
    # Neither is left standing.
    assert [worker.generate(PROMPT, new_tokens=48).generation.token_ids for worker in workers] == alone


def test_a_process_that_dies_while_it_stands_still_is_told(workers: list[WorkerProcess]) -> None:
    first, _ = workers
    first.start_generating(PROMPT, new_tokens=200)
    first.stop()
    first._process.send_signal(signal.SIGSEGV)
    first.stop()  # returns, although it never will stop again
    first.go_on()
    with pytest.raises((RuntimeCrashed, ShearlingError), match="SIGSEGV"):
        first.finish_generating()


def test_a_process_that_dies_in_its_turn_is_told(workers: list[WorkerProcess]) -> None:
    dying = workers[0]
    dying.start_generating(PROMPT, new_tokens=200)
    dying._process.send_signal(signal.SIGSEGV)
    os.waitid(os.P_PID, dying._process.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises((RuntimeCrashed, ShearlingError), match="SIGSEGV"):
        generate_in_turns([(dying, PROMPT), (workers[1], PROMPT)], new_tokens=48, turn_s=0.001)
    dying.stop()  # returns


@pytest.mark.timeout(60)
def test_two_processes_that_hang_are_told_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_gguf(tmp_path / "tiny.gguf", llama_tied_gqa(), tiny_tokenizer())
    place = environment_with(
        tmp_path / "hanging",
        module="llama_cpp",
        source=stand_in(step_s=3600),
        distribution="llama-cpp-python",
        sees_ours=True,
    )
    (hanging,) = find_deployments([parse_target(f"{model}@environment={place}")], RunOptions(threads=1))
    with ExitStack() as stack:
        found = [stack.enter_context(WorkerProcess(hanging, RunOptions(threads=1))) for _ in range(2)]
        for worker in found:
            worker.load()
        monkeypatch.setattr("serve.bench.worker_process.SILENCE_S", 0.5)
        with pytest.raises(RuntimeCrashed, match="hangs: asked to generate, it said nothing for 1 s") as told:
            generate_in_turns([(worker, PROMPT) for worker in found], new_tokens=4, turn_s=0.02)
        assert told.value.where == hanging.label


def test_a_process_that_stands_still_ends_with_its_parent(export: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom serve.bench.worker_process import WorkerProcess\n"
        "from serve.runtimes.deployment import find_deployment\nfrom serve.runtimes.runtime import RunOptions\n"
        "from shearling.target import Target\n"
        "worker = WorkerProcess(find_deployment(Target(Path(sys.argv[1]))), RunOptions(threads=1))\n"
        "worker.load()\nworker.stop()\nprint(worker._process.pid, flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(export / "openvino")], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert "T (stopped)" in (Path("/proc") / str(pid) / "status").read_text()
    parent.kill()
    parent.communicate()
    deadline_s = time.monotonic() + 20
    while _exists(pid) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not _exists(pid)


def test_a_check_takes_turns_and_a_benchmark_does_not(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def spy(works, *, new_tokens, turn_s):
        calls.append((new_tokens, turn_s))
        return generate_in_turns(works, new_tokens=new_tokens, turn_s=turn_s)

    monkeypatch.setattr("serve.bench.measurement.generate_in_turns", spy)
    check = guard_workload(4, 4).model_copy(update={"sessions": 1, "repeats": 2, "budget_s": None})
    for workload in (check, make_workload(4, 4, repeats=2)):
        result = MeasuredBlocks([[], []], [[], []])
        measure([deployment] * 2, RunOptions(threads=1), workload, result=result)
        assert len(result.samples) == 4
        assert calls == [(1, TURN_S), (4, TURN_S)] * 2
    assert not can_take_turns("GPU")


def test_a_benchmark_that_was_measured_whole_measures_no_more(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is continued may have lacked nothing but its artefact."""
    workload, result = make_workload(4, 4, repeats=2), MeasuredBlocks([[]], [[]])
    measure([deployment], RunOptions(threads=1), workload, result=result)
    assert len(result.samples) == 2
    monkeypatch.setattr("serve.bench.measurement.WorkerProcess", pytest.fail)
    measure([deployment], RunOptions(threads=1), workload, result=result)
    assert (len(result.samples), len(result.loads[0])) == (2, 1)


def test_where_one_side_guesses_there_are_no_turns(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.bench.measurement.generate_in_turns", pytest.fail)
    guessing = deployment.model_copy(update={"properties": {"PROMPT_LOOKUP": "3"}})
    result = MeasuredBlocks([[], []], [[], []])
    check = guard_workload(4, 8).model_copy(update={"sessions": 1, "repeats": 1, "budget_s": None})
    measure([deployment, guessing], RunOptions(threads=1), check, result=result)
    assert [sample.guessed for sample in result.samples] == [True, True]
    assert [sample.usual_gap_s for sample in result.samples] == [sample.tpot_s for sample in result.samples]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z (zombie)" not in (Path("/proc") / str(pid) / "status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
