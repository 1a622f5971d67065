"""What executors cost, and what they survive: overhead of a job, efficiency of many, and a search whose workers are
killed at random.

    python -m benchmarks.executors [--workers 8 --jobs 1000 --job-s 0.5 --long-jobs 10]
    python -m benchmarks.executors --run RUN [--kills 20 --evaluations 24 --limit 64]

Jobs sleep, so that the processors of this machine do not matter. With a run, it is searched by one process first, then
by a Ray cluster of three nodes with 1, 2 and 4 workers; of the last, workers are killed at random, and one node. The
journal and best.json are compared, without what a clock says. `--counts` takes other numbers of workers.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.command import command
from search.front import BestRule
from search.opening import open_run
from search.piece_store import PIECES_FILE
from search.settings import recipe_settings
from search.stage import search
from shearling.console import log
from shearling.executors.executor import Job, Workforce, make_executor
from shearling.run import Run
from tests.support.ray_clusters import ray_cluster

NODES = 3
LONG_JOB_S = 2.0
ACTOR = "ray::Actor"
"""What Ray calls a process with one of our actors in it."""


@dataclass(frozen=True)
class Sleeping:
    """Opens work that takes as long as is asked."""

    def __call__(self) -> Callable[[float], float]:
        """The work."""
        return sleep


def sleep(seconds: float) -> float:
    """Sleep, and say for how long it was asked."""
    time.sleep(seconds)
    return seconds


@command
def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--job-s", type=float, default=0.5)
    parser.add_argument("--long-jobs", type=int, default=10, help="of 2 s, one after the other")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--counts", default="1,2,4")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--evaluations", type=int, default=24)
    parser.add_argument("--limit", type=int, default=64)
    options = parser.parse_args(argv)
    found = _costs(options) if options.run is None else _kills(options)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 0


def _costs(options: argparse.Namespace) -> dict[str, Any]:
    with ray_cluster(nodes=NODES, cpus=-(-options.workers // NODES)) as cluster:
        found: dict[str, Any] = {}
        for name in ("processes", "ray"):
            where = cluster.address if name == "ray" else None
            alone = _seconds(Workforce(name, workers=1, address=where), jobs=options.long_jobs, job_s=LONG_JOB_S)
            many = _seconds(Workforce(name, options.workers, address=where), jobs=options.jobs, job_s=options.job_s)
            found[name] = {
                "overhead_of_2_s": round(alone / (options.long_jobs * LONG_JOB_S) - 1, 4),
                "efficiency": round(options.jobs * options.job_s / options.workers / many, 4),
            }
    return {"workers": options.workers, "jobs": options.jobs, "job_s": options.job_s, **found}


def _seconds(workforce: Workforce, *, jobs: int, job_s: float) -> float:
    """Wall time of jobs that sleep, once all workers are there."""
    executor = make_executor(workforce, Sleeping())
    try:
        list(executor.run([Job(0.5, key=number) for number in range(2 * executor.workers)]))
        started_s = time.perf_counter()
        done = sum(1 for _ in executor.run([Job(job_s, key=number) for number in range(jobs)]))
        seconds = time.perf_counter() - started_s
    finally:
        executor.close()
    if done != jobs:
        raise RuntimeError(f"{done} of {jobs} jobs were told")
    return seconds


def _kills(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=options.run.resolve().parent) as directory:
        expected = _search(options, Path(directory) / "alone", Workforce(threads=1))
        found, counts = {}, [int(count) for count in options.counts.split(",")]
        for workers in counts:
            place, wanted = Path(directory) / str(workers), options.kills if workers == counts[-1] else 0
            with ray_cluster(nodes=NODES, cpus=2) as cluster, _killing(cluster, place, wanted) as killed:
                started_s = time.perf_counter()
                same = _search(options, place, Workforce("ray", workers, address=cluster.address)) == expected
                seconds = round(time.perf_counter() - started_s, 1)
            found[workers] = {"same": same, "killed": killed, "s": seconds}
            log.print(f"{workers} workers: {found[workers]}")
    return {"evaluations": len(expected[0]), "by workers": found}


@contextmanager
def _killing(cluster: Any, run: Path, kills: int) -> Iterator[list[str]]:
    """Kill a worker whenever a few more pieces are finished, and once a whole node; says what was killed."""
    killed: list[str] = []
    over = threading.Event()
    choose = random.Random(0)

    def kill() -> None:
        seen = 0
        while len(killed) < kills and not over.wait(choose.uniform(0.2, 3.0)):
            pieces = Run(run).search.with_name(".search.partial") / PIECES_FILE
            finished = pieces.read_bytes().count(b"\n") if pieces.exists() else 0
            workers = [process for process in psutil.process_iter(["cmdline"]) if _is_worker(process)]
            if finished <= seen or not workers:
                continue
            seen = finished
            if len(killed) == kills // 2:
                cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
                killed.append("node")
            else:
                choose.choice(workers).kill()
                killed.append("worker")

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def _is_worker(process: psutil.Process) -> bool:
    return any(word.startswith(ACTOR) for word in process.info["cmdline"] or ())


def _search(options: argparse.Namespace, place: Path, workforce: Workforce) -> tuple[list[Any], Any]:
    run = Run(place)
    shutil.copytree(options.run, run.path, ignore=shutil.ignore_patterns("search", ".search*", "export*"))
    changes = {"evaluations": options.evaluations, "limit": options.limit, "precision": "fp32"}
    settings = recipe_settings(open_run(run).section)
    search(run, type(settings)(**{**vars(settings), **changes}), BestRule(), workforce=workforce)
    journal = [json.loads(line) for line in (run.search / "journal.jsonl").read_text().splitlines()]
    best = json.loads((run.search / "best.json").read_text())
    del best["created"], best["metrics"]["seconds"]
    return [{key: line[key] for key in line.keys() - {"seconds"}} for line in journal], best


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
