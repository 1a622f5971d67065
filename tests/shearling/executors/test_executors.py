"""Every executor gives the same outcomes, and loses none, whatever happens to its workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shearling.errors import ArtefactMissing, EnvironmentFault, ResourceExhausted, ShearlingError, UsageError
from shearling.executors.crew import LOSSES_OF_A_JOB, CrewExecutor
from shearling.executors.executor import Job, Workforce, check_workforce, make_executor
from shearling.executors.job_queue import JobQueue
from shearling.executors.processes import ProcessCrew, ProcessMember
from tests.support.counting_work import Beginning, Request, Squares, squares
from tests.support.documents import ROOT


def processes(workers: int) -> Workforce:
    return Workforce(executor="processes", workers=workers)


@pytest.mark.parametrize("workforce", [Workforce(), processes(1), processes(3)], ids=lambda each: each.executor)
def test_every_job_is_done_once(workforce: Workforce) -> None:
    requests = [Request(number, seconds=0.01 * (number % 3)) for number in range(20)]
    assert squares(workforce, requests) == [number**2 for number in range(20)]
    assert squares(workforce, []) == []


def test_no_more_workers_start_than_there_are_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = make_executor(processes(3), Squares())
    hired = []
    hire = executor._crew.hire
    monkeypatch.setattr(executor._crew, "hire", lambda: hired.append(hire()) or hired[-1])
    try:
        assert [place for place, _ in executor.run([Job(Request(3, 0.0), key=0)])] == [0]
        assert len(hired) == 1
        assert len(list(executor.run([Job(Request(number, 0.1), key=number) for number in range(4)]))) == 4
        assert len(hired) == 3
    finally:
        executor.close()


def test_workers_stay_between_two_runs() -> None:
    executor = make_executor(processes(2), Squares())
    try:
        seen = [
            {
                process
                for _, (_, process) in executor.run([Job(Request(number, 0.2), key=number) for number in range(4)])
            }
            for _ in range(2)
        ]
    finally:
        executor.close()
    assert seen[0] == seen[1]
    assert len(seen[0]) == 2
    assert os.getpid() not in seen[0]


@pytest.mark.parametrize("workforce", [Workforce(), processes(2)], ids=lambda each: each.executor)
def test_an_error_of_the_work_keeps_its_class_and_its_remedy(workforce: Workforce) -> None:
    with pytest.raises(UsageError, match=r"here: this number is not liked. Take another"):
        squares(workforce, [Request(1), Request(2, act="refuse")])


def test_an_error_of_a_library_is_told_with_its_traceback() -> None:
    with pytest.raises(ShearlingError, match="a worker failed: ValueError: cannot be squared") as caught:
        squares(processes(1), [Request(1, act="break")])
    assert "counting_work.py" in caught.value.__notes__[0]


def test_a_worker_whose_device_is_full_says_what_would_fit() -> None:
    with pytest.raises(ResourceExhausted, match=r"a device has too little memory: CUDA.*2\.00 GiB.*smaller batch"):
        squares(processes(1), [Request(1, act="fill")])


def test_there_are_as_many_workers_as_processors_have_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shearling.executors.executor.available_cpus", lambda: 8)
    for options, expected in (({}, 8), ({"threads": 3}, 2), ({"threads": 9}, 1), ({"threads": 3, "workers": 5}, 5)):
        workforce = Workforce("processes", **options)
        executor = make_executor(workforce, Squares())
        executor.close()
        assert workforce.workers_here == executor.workers == expected


def test_what_cannot_be_opened_is_told_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(ArtefactMissing, match="no super_adapter artefact here"):
        squares(processes(2), [Request(1)], Squares(needs=tmp_path / "absent"))


def test_a_worker_that_dies_is_replaced_and_its_job_done_again(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    diary = tmp_path / "diary"
    requests = [Request(number, 0.05, act="die_once" if number == 3 else "") for number in range(10)]
    assert squares(processes(2), requests, Squares(diary)) == [number**2 for number in range(10)]
    assert sorted(int(line) for line in diary.read_text().split()) == list(range(10)), "one was finished twice"
    assert "ended with signal SIGKILL" in capfd.readouterr().err


def test_a_worker_that_hangs_is_replaced(tmp_path: Path) -> None:
    executor = CrewExecutor(ProcessCrew(Squares(tmp_path / "diary"), silence_s=1.0), workers=2)
    try:
        outcomes = dict(executor.run([Job(Request(number, act="hang" if not number else "")) for number in range(4)]))
    finally:
        executor.close()
    assert {place: square for place, (square, _) in outcomes.items()} == {0: 0, 1: 1, 2: 4, 3: 9}


def test_a_job_that_ends_every_worker_ends_the_work_and_what_was_done_before_is_told() -> None:
    executor, finished = make_executor(processes(2), Squares()), []
    jobs = [Job(Request(1), key=1), Job(Request(2, act="die"), key=2)]
    with pytest.raises(ResourceExhausted, match=f"{LOSSES_OF_A_JOB} workers were lost over the same piece"):
        finished.extend(place for place, _ in executor.run(jobs))
    executor.close()
    assert finished == [0]


class Crippled(ProcessCrew):
    """Of all that it hires only the first lives until it has opened the work; or nobody."""

    living = 1

    def hire(self) -> ProcessMember:
        member = super().hire()
        if len(self._members) > self.living:
            member.process.kill()
        return member


def test_where_there_is_room_for_one_worker_it_does_the_work(capfd: pytest.CaptureFixture) -> None:
    executor = CrewExecutor(Crippled(Squares()), workers=2)
    outcomes = dict(executor.run([Job(Request(number, 0.3), key=number) for number in range(12)]))
    executor.close()
    assert {place: square for place, (square, _) in outcomes.items()} == {number: number**2 for number in range(12)}
    assert executor.workers == 1
    assert "no more than 1 are started from now on" in capfd.readouterr().err


def test_where_no_worker_lives_the_work_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Crippled, "living", 0)
    executor = CrewExecutor(Crippled(Squares()), workers=2)
    with pytest.raises(EnvironmentFault, match="5 workers in a row were lost before they had loaded anything"):
        list(executor.run([Job(Request(1))]))
    executor.close()


LEADER = """
import json, os, sys
sys.path.insert(0, {root!r})
from shearling.executors.executor import Job, Workforce, make_executor
from tests.support.counting_work import Beginning
if __name__ == "__main__":
    executor = make_executor(Workforce(executor="processes", workers=2), Beginning())
    told = [beginning for _, beginning in executor.run([Job({names!r}, key=key) for key in range(4)])]
    executor.close()
    told = [(sorted(each.libraries), each.parent, each.kept, sorted(each.environment)) for each in told]
    print(json.dumps({{"leader": os.getpid(), "environment": sorted(os.environ), "told": told}}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every worker imports by itself")
@pytest.mark.parametrize("forked", [True, False], ids=["forked", "no place for a socket"])
def test_workers_have_the_libraries_of_the_leader_in_common(tmp_path: Path, forked: bool) -> None:
    names = ("torch", "transformers.modeling_utils", "peft")
    elsewhere, temporary = tmp_path / "another checkout", tmp_path / ("t" if forked else "t" * 100)
    temporary.mkdir()
    # What the leader does not find is not found by what its workers begin with either.
    for name in ("shearling", "yaml"):
        (elsewhere / name).mkdir(parents=True)
        (elsewhere / name / "__init__.py").write_text(f"raise RuntimeError('{name} of another checkout')")
    program = tmp_path / "leader.py"
    program.write_text(LEADER.format(root=str(ROOT), names=(*names, "torchvision")))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=elsewhere,
        env={**environment, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    parents = {parent for _, parent, _, _ in found["told"]}
    for libraries, _, kept, variables in found["told"]:
        assert libraries == (sorted(names) if forked else [])
        # Of a new interpreter some hundred objects are kept, of the libraries a great many.
        assert (kept > 10_000) == forked
        assert variables == found["environment"]
    assert len(parents) == 1
    assert (parents == {found["leader"]}) == (not forked)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")
def test_a_library_that_cannot_be_imported_stops_no_work_that_does_without_it(tmp_path: Path) -> None:
    broken = tmp_path / "peft"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('made for another torch')")
    program = tmp_path / "leader.py"
    program.write_text(LEADER.format(root=str(ROOT), names=("peft",)))
    # The directory of a program is searched first.
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert [libraries for libraries, _, _, _ in found["told"]] == [[]] * 4
    assert found["leader"] not in {parent for _, parent, _, _ in found["told"]}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")
def test_a_worker_that_hangs_ends_though_what_it_was_forked_from_has_died() -> None:
    executor = make_executor(processes(1), Beginning())
    [(_, beginning)] = executor.run([Job(())])
    os.kill(beginning.parent, signal.SIGKILL)
    os.kill(beginning.process, signal.SIGSTOP)
    executor.close()
    until_s = time.monotonic() + 30
    while Path(f"/proc/{beginning.process}").exists():
        assert time.monotonic() < until_s, "it is still there"
        time.sleep(0.05)
    assert squares(processes(1), [Request(3)]) == [9], "another one is started"


def test_workers_end_with_the_process_that_asked(tmp_path: Path) -> None:
    script = f"""
import psutil, sys
sys.path.insert(0, {str(ROOT)!r})
from shearling.executors import fork_server
from shearling.executors.executor import Job, Workforce, make_executor
from tests.support.counting_work import Request, Squares
if __name__ == "__main__":
    fork_server.SHARED_MODULES = "json"  # the work needs no library
    executor = make_executor(Workforce(executor="processes", workers=2), Squares())
    jobs = [Job(Request(number, 0.2), key=number) for number in range(2)]
    workers = {{process for _, (_, process) in executor.run(jobs)}}
    parents = {{psutil.Process(worker).ppid() for worker in workers}}
    print(*workers, *parents, flush=True)
    list(executor.run([Job(Request(number, 600.0)) for number in range(2)]))
"""
    file = tmp_path / "leader.py"
    file.write_text(script)
    leader = subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, text=True)
    assert leader.stdout is not None
    started = [int(number) for number in leader.stdout.readline().split()]
    assert len(started) == 3, "two workers, and the process that they are forked from"
    leader.send_signal(signal.SIGKILL)
    leader.wait()
    leader.stdout.close()
    until_s = time.monotonic() + 30
    while any(Path(f"/proc/{process}").exists() for process in started):
        assert time.monotonic() < until_s, "a process outlives the one that asked for it"
        time.sleep(0.1)


def test_jobs_of_a_key_stay_together_until_workers_are_idle() -> None:
    queue = JobQueue([Job(None, key=key) for key in "aaabbb"])
    assert [queue.take(at_hand=None, others=()), queue.take(at_hand=None, others={"a"})] == [0, 3]
    assert [queue.take(at_hand="a", others={"b"}), queue.take(at_hand="b", others={"a"})] == [1, 4]
    # A third worker takes from the end of what the others have in hand.
    assert queue.take(at_hand=None, others={"a", "b"}) == 5
    queue.put_back(1)
    assert [queue.take(at_hand="a", others={"b"}), queue.take(at_hand="a", others={"b"}), bool(queue)] == [1, 2, False]


@pytest.mark.parametrize(
    ("workforce", "message"),
    [
        (Workforce(workers=2), "--workers: the executor local has no such option.*processes, ray"),
        (Workforce(executor="processes", address="auto"), "--address: the executor processes has no such option.*ray"),
        (Workforce(executor="processes", gpus_per_worker=1), "--gpus-per-worker: the executor processes has no such"),
        (Workforce(executor="process"), "there is no executor 'process'. Did you mean 'processes'"),
        (Workforce(executor="ray", address="http://cluster:1"), "'http://cluster:1' is no address of a Ray cluster"),
        (Workforce(executor="ray", address="cluster"), "'cluster' is no address of a Ray cluster"),
    ],
)
def test_what_an_executor_does_not_have_is_refused(workforce: Workforce, message: str) -> None:
    if workforce.executor == "ray":
        pytest.importorskip("ray")
    with pytest.raises(UsageError, match=message):
        check_workforce(workforce)


def test_without_ray_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match=r"Install it with: pip install -e '\.\[ray\]', in a checkout") as caught:
        check_workforce(Workforce(executor="ray"))
    assert caught.value.exit_code == 4
