"""What a plan refuses before any work: destinations, rows that are gone, groups that no layer has."""

from __future__ import annotations

import shutil

import pytest

from export.plan import plan_frozen, plan_subnet
from export.request import ExportRequest
from shearling.artefact import open_artefact, write_artefact
from shearling.errors import OutputExists
from shearling.run import Run
from tests.support.tiny_subnets import run_with_best


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return run_with_best(tmp_path_factory.mktemp("made"), masked=True)


@pytest.fixture
def run(made, tmp_path):
    return Run(shutil.copytree(made.path, tmp_path / "run"))


def request_for(path, **options):
    return ExportRequest(**{"output": path, "formats": ("openvino",), **options})


@pytest.mark.parametrize("name", ["task", "base", "sparse", "super_adapter"])
def test_force_replaces_no_other_artefact_of_the_run(run, name):
    request = request_for(run.path / name, force=True)
    for plan, source in ((plan_frozen, run.sparse), (plan_subnet, run.path / "best.json")):
        with pytest.raises(OutputExists) as caught:
            plan(source, request)
        assert (caught.value.exit_code, caught.value.where) == (2, str(run.path / name))
    open_artefact(run.sparse, kind="sparse")


def test_force_removes_no_export_that_holds_what_is_exported(made, tmp_path):
    with write_artefact(tmp_path / "export", kind="export") as draft:
        shutil.copytree(made.path, draft.directory / "run")
    run, request = Run(tmp_path / "export" / "run"), request_for(tmp_path / "export", force=True)
    for plan, source in ((plan_frozen, run.sparse), (plan_subnet, run.path / "best.json")):
        with pytest.raises(OutputExists, match="holds what the output is made from"):
            plan(source, request)
