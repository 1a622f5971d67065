"""A real Ray cluster of several nodes: the same outcomes as here, and none lost with a process or a node."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from shearling.errors import ArtefactMissing, EnvironmentFault, UsageError
from shearling.executors.crew import CrewExecutor
from shearling.executors.executor import Job, Workforce, check_workforce, make_executor
from shearling.executors.identity import check_identity, own_identity
from tests.support.counting_work import Request, SentSquares, Squares, squares
from tests.support.ray_clusters import ray_cluster

pytest.importorskip("ray")

# Ray leaves sockets and pipes of the processes that it has started to the garbage collector.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with ray_cluster() as cluster:
        yield cluster


def on(cluster: Any, **options: Any) -> Workforce:
    return Workforce(executor="ray", address=cluster.address, **options)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_job_is_done_once(cluster: Any, workers: int) -> None:
    check_workforce(on(cluster, workers=workers))
    requests = [Request(number, seconds=0.01 * (number % 3)) for number in range(20)]
    assert squares(on(cluster, workers=workers), requests) == [number**2 for number in range(20)]


def test_a_signal_ends_a_command_as_it_does_without_ray(cluster: Any) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    executor = make_executor(on(cluster, workers=1), Squares())
    try:
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        executor.close()
        signal.signal(signal.SIGTERM, handler)


def test_there_are_no_more_workers_than_room_and_none_is_told(cluster: Any) -> None:
    executor = make_executor(on(cluster, workers=50), Squares())
    assert executor.workers == 4
    executor.close()
    with pytest.raises(
        EnvironmentFault, match=r"no node has room for a worker of 1 CPUs and 1 GPUs: there are .*2 CPUs and 0 GPUs"
    ):
        make_executor(on(cluster, gpus_per_worker=1), Squares())


def test_errors_keep_their_class_and_name_the_node(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this number is not liked"):
        squares(on(cluster, workers=1), [Request(1, act="refuse")])
    with pytest.raises(ArtefactMissing, match="no super_adapter artefact here") as caught:
        squares(on(cluster, workers=2), [Request(1)], Squares(needs=tmp_path / "absent"))
    assert str(caught.value.where).startswith("node ")


def test_a_worker_that_dies_or_hangs_is_replaced(cluster: Any, tmp_path: Path) -> None:
    import ray

    from shearling.executors.ray_cluster import RayCrew

    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    for act in ("die_once", "hang"):
        diary = tmp_path / act
        executor = CrewExecutor(RayCrew(on(cluster), Squares(diary), silence_s=3.0), workers=2)
        try:
            requests = [Request(number, 0.05, act=act if number == 3 else "") for number in range(10)]
            outcomes = dict(executor.run([Job(request, key=request.number) for request in requests]))
        finally:
            executor.close()
        assert {place: square for place, (square, _) in outcomes.items()} == {n: n**2 for n in range(10)}
        assert sorted(int(line) for line in diary.read_text().split()) == list(range(10))
    ray.shutdown()


def test_what_killed_workers_of_this_node_were_sent_is_swept(tmp_path: Path) -> None:
    from shearling.executors.ray_cluster import sweep

    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    left = [f"run-here-{ended.pid}-a", f"run-here-{os.getpid()}-b", f"run-there-{ended.pid}-c", "run-here-else"]
    for name in left:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").touch()
    sweep(tmp_path, "run-here-")
    assert sorted(directory.name for directory in tmp_path.iterdir()) == sorted(left[1:])


def test_a_node_keeps_no_copy_of_a_worker_that_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received, copy = tmp_path / "received", tmp_path / "copy"
    received.mkdir()
    copy.write_bytes(b"weights")
    monkeypatch.setenv("TMPDIR", str(received))
    # Ray's own sockets need a short path.
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    work = SentSquares(tmp_path / "diary", needs=tmp_path / "not mounted", copy=copy)
    with ray_cluster(nodes=1) as cluster:
        executor = make_executor(on(cluster, workers=1), work)
        requests = [Request(number, act="die_once" if number == 1 else "") for number in range(3)]
        processes, copies = set(), []
        for _, (_, process) in executor.run([Job(request, key=request.number) for request in requests]):
            processes.add(process)
            copies.append(len(list(received.glob("shearling-run-*"))))
        executor.close()
        assert len(processes) == 2
        assert copies == [1, 1, 1]
        assert list(received.glob("shearling-run-*")) == []


def test_workers_and_a_node_killed_at_random_lose_and_repeat_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    diary, count, kills = tmp_path / "diary", 60, 6
    choose = random.Random(0)
    with ray_cluster(nodes=3) as cluster:
        executor = make_executor(on(cluster, workers=4), Squares(diary))
        finished: dict[int, int] = {}
        done = executor.run([Job(Request(number, 0.25), key=number) for number in range(count)])
        killed = 0
        for place, (square, process) in done:
            assert place not in finished, "one outcome came twice"
            finished[place] = square
            # Half of the kills meet a worker that has just been given the next job.
            if killed < kills and choose.random() < 0.25:
                killed += 1
                if killed == kills // 2:
                    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
                else:
                    os.kill(process, signal.SIGKILL)
        executor.close()
    assert killed == kills
    assert capsys.readouterr().out == "", "only results belong on stdout"
    assert finished == {number: number**2 for number in range(count)}


def test_another_source_or_version_on_a_worker_is_refused(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from shearling.executors import ray_cluster as module

    other = {**own_identity(), "ray": "2.49.0", "source of shearling": "0123456789ab"}
    monkeypatch.setattr(module, "own_identity", lambda: other)
    with pytest.raises(
        EnvironmentFault, match=r"a worker has other versions .*not 2\.49\.0; source of.*not 0123456789ab"
    ):
        squares(on(cluster, workers=1), [Request(1)])
    check_identity(own_identity(), where="here")


@pytest.fixture
def older_cluster(cluster: Any) -> Iterator[Any]:
    """Says of itself that it runs another version of Ray."""
    import ray
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

    name, namespace = b"CLUSTER_METADATA", KV_NAMESPACE_CLUSTER
    # What the head says of itself.
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    said = _internal_kv_get(name, namespace=namespace)
    other = json.dumps({**json.loads(said), "ray_version": "2.49.0"}).encode()
    try:
        _internal_kv_put(name, other, overwrite=True, namespace=namespace)
        yield cluster
    finally:
        _internal_kv_put(name, said, overwrite=True, namespace=namespace)
        ray.shutdown()


def test_a_cluster_of_another_version_of_ray_is_refused(older_cluster: Any) -> None:
    with pytest.raises(EnvironmentFault, match=r"the cluster runs other versions.*Ray: 2\.49\.0") as caught:
        check_workforce(on(older_cluster))
    assert caught.value.exit_code == 4


@pytest.mark.alone
@pytest.mark.parametrize("answers", [False, True], ids=["nothing", "something else"])
def test_no_cluster_at_the_address_is_told_in_ten_seconds(answers: bool) -> None:
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    if answers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    else:
        server.server_close()
    started_s = time.monotonic()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "search",
            "--run",
            "any",
            "--executor",
            "ray",
            "--address",
            f"127.0.0.1:{server.server_port}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if answers:
        server.shutdown()
        server.server_close()
    assert done.returncode == 4, done.stderr
    assert "no Ray cluster answers" in done.stderr
    assert "ray start --head" in done.stderr
    assert time.monotonic() - started_s < 10
