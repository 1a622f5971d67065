"""A file that lacks a pruned layer ends an export whatever its gates are told, and everything written is kept."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

import export.formats.huggingface
from export.rejection import REJECTED, RejectedFiles
from export.request import ExportRequest
from export.stage import export_subnet
from export.verification.zeros import read_huggingface
from shearling.artefact import list_files
from shearling.errors import SparsityLost
from shearling.strict_json import read_document
from tests.support.tiny_subnets import run_with_best

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it


@pytest.mark.parametrize("verify", ["strict", "warn"])
def test_files_that_lack_a_pruned_layer_are_kept(tmp_path, monkeypatch, verify):
    run = run_with_best(tmp_path, masked=True)

    def without_the_first(directory, shapes):
        return itertools.islice((item for item in read_huggingface(directory, shapes) if item[0] in shapes), 1, None)

    monkeypatch.setattr(export.formats.huggingface, "read_huggingface", without_the_first)
    request = ExportRequest(tmp_path / "export", formats=("hf", "peft"), verify=verify)
    with pytest.raises(SparsityLost, match="model: the file holds no weight for 1 pruned modules") as caught:
        export_subnet(run.path / "best.json", request)
    kept = tmp_path / "export.rejected"
    assert (caught.value.exit_code, Path(caught.value.where)) == (1, kept)
    assert not (tmp_path / "export").exists()
    files = list_files(kept)
    assert set(files) > {"model/model.safetensors", "model/config.json", REJECTED}
    assert sorted((*read_document(kept / REJECTED, RejectedFiles).files, REJECTED)) == files
