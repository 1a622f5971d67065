"""What a command line names, read once."""

from __future__ import annotations

from pathlib import Path

import pytest

from shearling.errors import UsageError
from shearling.target import AUTO, Target, parse_target


def test_a_path_alone() -> None:
    target = parse_target("runs/export")
    assert target == parse_target(Path("runs/export")) == parse_target(target) == Target(Path("runs/export"))
    assert (target.format, target.label) == (AUTO, "runs/export")


def test_a_path_with_an_equals_sign_is_no_settings() -> None:
    assert parse_target("models/lr=1e-3") == Target(Path("models/lr=1e-3"))
    assert parse_target("LR=3") == Target(Path("LR=3"))


def test_settings_behind_the_path() -> None:
    written = "runs/a@b@format=onnx,NUM_STREAMS=1,environment=venvs/old"
    target = parse_target(written)
    assert (target.path, target.format) == (Path("runs/a@b"), "onnx")
    assert (target.properties, target.environment) == ({"NUM_STREAMS": "1"}, Path("venvs/old"))
    assert target.label == written
    assert target.with_format("torch") == target
    assert Target(Path("a")).with_format("torch").format == "torch"


def test_an_environment_may_lie_in_a_directory_with_an_at_sign() -> None:
    """Such as the second workspace that Jenkins makes for a job."""
    target = parse_target("/ws/job@2/model@environment=/ws/job@2/venv,format=onnx")
    assert target.path == Path("/ws/job@2/model")
    assert (target.environment, target.format) == (Path("/ws/job@2/venv"), "onnx")


def test_a_path_that_exists_is_a_path(tmp_path: Path) -> None:
    strange = tmp_path / "model@format=onnx"
    strange.mkdir()
    assert parse_target(strange) == Target(strange)


@pytest.mark.parametrize("settings", ["dynamic=0", "STREAMS=", "format=onnx,format=onnx", "format=onnx,PLUGIN", "=1"])
def test_settings_that_cannot_be_read(settings: str) -> None:
    with pytest.raises(UsageError, match="cannot read the settings"):
        parse_target(f"runs/export@{settings}")


def test_a_command_of_one_format() -> None:
    assert Target(Path("a")).only("openvino").format == "openvino"
    with pytest.raises(UsageError, match="only OpenVINO is measured here, not onnx"):
        parse_target("a@format=onnx").only("openvino")
