from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.formats.openvino import write_openvino
from serve.runtimes.deployment import find_deployment
from serve.runtimes.runtime import RunOptions, Runtime, load_runtime
from shearling.target import Target
from tests.support.exported_files import stored_as
from tests.support.http_server import HttpServer, serving
from tests.support.once_per_run import once_per_run
from tests.support.tiny_models import pruned_model, tiny_tokenizer


@pytest.fixture(scope="session")
def sparse_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned int8 model with sparse kernels."""

    def make(directory: Path) -> None:
        model, _ = pruned_model("llama_tied_gqa")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchao warns while optimum imports it
            write_openvino(model, tiny_tokenizer(), directory, stored_as("int8", kernel="sparse"), sparsity={})

    return once_per_run(tmp_path_factory, "http-sparse", make)


@pytest.fixture(scope="session")
def server(export: Path, sparse_export: Path) -> Iterator[HttpServer]:
    """With a stock model, `tiny`, and a sparse one, `tiny/sparse`; no test may end it."""
    with serving(f"tiny={export}", f"tiny/sparse={sparse_export}", options=("--max-body-bytes", "65536")) as running:
        yield running


@pytest.fixture(scope="session")
def runtime(export: Path) -> Runtime:
    """The stock model in this process: what the server has to agree with."""
    return load_runtime(find_deployment(Target(export / "openvino")), RunOptions(precision="fp32", threads=1))


@pytest.fixture(scope="session")
def sparse_runtime(sparse_export: Path) -> Runtime:
    """Likewise, the sparse one."""
    return load_runtime(find_deployment(Target(sparse_export)), RunOptions(precision="fp32", threads=1))
