"""Estimates: added up, said in words, and refused where they cannot fit."""

from __future__ import annotations

import shutil
from collections import namedtuple

import psutil
import pytest
from rich.table import Table

from shearling import resources
from shearling.dry_run import show_estimates
from shearling.errors import ResourceExhausted
from shearling.resources import Estimate, available_memory_bytes, free_device_bytes, in_words, require


def test_one_after_the_other_takes_the_larger_memory_and_both_disks():
    assert Estimate(5, 7, 1).then(Estimate(3, 2, 4)) == Estimate(5, 9, 4)


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (6 * 2**30, "6.0 GiB")]
)
def test_words(count, words):
    assert in_words(count) == words


def test_what_cannot_fit_is_refused_with_what_there_is_and_what_would(tmp_path, monkeypatch):
    require(Estimate(2**20, 2**20), tmp_path / "not" / "there")
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(ResourceExhausted, match="of disk needed") as caught:
        require(Estimate(0, 2 * free), tmp_path / "out")
    assert caught.value.exit_code == 4
    memory = namedtuple("memory", "available")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(2**20))
    with pytest.raises(ResourceExhausted, match=r"about 1\.0 TiB of memory needed, .* available.*Take less"):
        require(Estimate(2**40), tmp_path, remedy="Take less")
    monkeypatch.setattr(resources, "free_device_bytes", lambda: 2**30)
    require(Estimate(0, 0, 2**30), tmp_path)
    with pytest.raises(
        ResourceExhausted, match=r"about 2\.0 GiB of a device needed, 1\.0 GiB free.*Take less"
    ) as caught:
        require(Estimate(0, 0, 2**31), tmp_path, remedy="Take less")
    assert caught.value.exit_code == 4


def test_the_device_of_a_process_is_asked_where_there_is_one(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert free_device_bytes() is None
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (100 + device, 1000))
    assert free_device_bytes() == 100
    for rank, free_bytes in (("1", 101), ("2", 100)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert free_device_bytes() == free_bytes


def test_a_dry_run_shows_the_device_where_a_part_computes_on_one(tmp_path, monkeypatch):
    monkeypatch.setattr("shearling.dry_run.free_device_bytes", lambda: 9)
    for device_bytes, columns in ((0, ["part", "memory", "disk"]), (7, ["part", "memory", "disk", "device"])):
        shown = show_estimates({"lora": Estimate(1, 2, device_bytes)}, tmp_path)
        assert isinstance(shown.screen, Table)
        assert [column.header for column in shown.screen.columns] == columns
        assert shown.data["parts"] == {"lora": {"memory_bytes": 1, "disk_bytes": 2, "device_bytes": device_bytes}}
        assert shown.data["available"]["device_bytes"] == (9 if device_bytes else 0)


@pytest.mark.parametrize("version", [(), ("memory",)])
def test_the_limit_of_a_container_or_of_a_job_counts(tmp_path, monkeypatch, version):
    group = tmp_path.joinpath(*version, "user", "job")
    group.mkdir(parents=True)
    texts = ("1000000\n", "900000\n", "anon 5\ninactive_file 200000\nactive_file 100000\n")
    limit, current, stat = (group / name for name in resources._MEMORY_FILES["".join(version)])
    for file, text in zip((limit, current, stat), texts, strict=True):
        file.write_text(text)
    (tmp_path / "own").write_text(f"3:cpu,cpuacct:/a:b\n1:{''.join(version)}:/user/job/step\n")
    monkeypatch.setattr(resources, "_CGROUPS", tmp_path)
    monkeypatch.setattr(resources, "_OWN_CGROUPS", tmp_path / "own")
    own = psutil.Process().memory_info().rss
    assert available_memory_bytes() - own == pytest.approx(400_000, abs=2**20)
    current.write_text("1300000\n")
    assert available_memory_bytes() - own == pytest.approx(0, abs=2**20)
    limit.write_text("max\n")
    assert available_memory_bytes() > own + 2**24
