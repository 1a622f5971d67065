"""Ray clusters of several nodes on this machine: real processes, small memories."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

STORE_BYTES = 100 * 2**20


@contextmanager
def ray_cluster(*, nodes: int = 2, cpus: int = 2) -> Iterator[Any]:
    """A `ray.cluster_utils.Cluster`.

    Args:
        nodes: beside the head, which does no work.
        cpus: of each.
    """
    import ray
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": STORE_BYTES}
    # Nobody asks for more nodes, or reads on here what workers write.
    alone = {"num_cpus": 0, "include_dashboard": False, "no_monitor": True, "include_log_monitor": False}
    with _without_grammar():
        cluster = Cluster(initialize_head=True, head_node_args={**alone, **memory})
        try:
            for _ in range(nodes):
                cluster.add_node(num_cpus=cpus, **memory)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


@contextmanager
def _without_grammar() -> Iterator[None]:
    """Children do not find a package that jsonschema, and so every process of Ray, imports where there is one.

    It reads a grammar for two seconds. A tool for bills of materials has brought it; Ray checks no IRI.
    """
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "rfc3987_syntax.py").write_text("raise ImportError\n")
        path = os.pathsep.join(filter(None, (directory, os.environ.get("PYTHONPATH"))))
        with mock.patch.dict(os.environ, PYTHONPATH=path):
            yield
