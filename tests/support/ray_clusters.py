"""Ray clusters of several nodes on this machine: real processes, small memories."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=cpus, **memory)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
