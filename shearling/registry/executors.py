"""Where evaluations are done; what an implementation is, `shearling.executors.executor` says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shearling.registry.registry import Registry, SingleEntry, load_implementation


@dataclass(frozen=True, kw_only=True)
class ExecutorEntry(SingleEntry):
    """An executor; its implementation makes an `Executor` from a `Workforce` and what opens the work.

    Attributes:
        in_process: it works in the process that asks, which then has what it needs loaded already.
        takes_address: it works on a cluster, see `--address`.
        takes_gpus: it gives devices to its workers, see `--gpus-per-worker`.
        check: `module:function` that raises where this machine cannot do it, before anything is loaded; None where
            every machine can.
    """

    in_process: bool = False
    takes_address: bool = False
    takes_gpus: bool = False
    check: Any = None

    def load_check(self) -> Any:
        """The function that `check` names, imported; None where there is none."""
        return None if self.check is None else load_implementation(self.check)


EXECUTORS: Registry[ExecutorEntry] = Registry(
    noun="executor",
    group="shearling.executors",
    entry_type=ExecutorEntry,
    entries=(
        ExecutorEntry(
            name="local",
            summary="one after another, in this process",
            implementation="shearling.executors.local:LocalExecutor",
            in_process=True,
        ),
        ExecutorEntry(
            name="processes",
            summary="processes of this machine",
            implementation="shearling.executors.processes:ProcessExecutor",
        ),
        ExecutorEntry(
            name="ray",
            summary="the nodes of a Ray cluster",
            implementation="shearling.executors.ray_cluster:RayExecutor",
            takes_address=True,
            takes_gpus=True,
            check="shearling.executors.ray_address:check_cluster",
        ),
    ),
)
