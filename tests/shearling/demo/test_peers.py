"""Models beside those of the demo: found before the work, and told apart in tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from shearling.demo.shears.layout import ShearsLayout
from shearling.demo.shears.peers import check_peers, peer_names
from shearling.demo.shears.stage import run_demo
from shearling.errors import ArtefactMissing, ShearlingError, UsageError
from shearling.target import parse_target
from tests.support.tiny_models import save_tiny


def test_a_peer_is_looked_for_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ArtefactMissing, match="no model here"):
        run_demo(tmp_path / "demo", scale="smoke", force=False, peers=[parse_target(tmp_path / "nothing")])
    assert not (tmp_path / "demo").exists()


def test_a_model_that_is_there_is_a_peer(tmp_path: Path) -> None:
    check_peers(ShearsLayout(tmp_path / "demo"), [parse_target(save_tiny("llama", tmp_path / "model"))])


@pytest.mark.parametrize(
    ("names", "said"),
    [(["demo/sparse-int8"], "compares this already"), (["demo/other", "demo/other"], "named twice")],
)
def test_a_model_stands_in_the_table_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=said):
        check_peers(ShearsLayout(Path("demo")), [parse_target(name) for name in names])


def test_settings_that_no_evaluation_honours_are_refused(tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "model")
    with pytest.raises(ShearlingError):
        check_peers(ShearsLayout(tmp_path / "demo"), [parse_target(f"{model}@INFERENCE_PRECISION_HINT=f32")])


def test_names_are_short_where_that_tells_them_apart() -> None:
    peers = ["llama/Q4_0.gguf@environment=llama", "llama/Q4_0.gguf@environment=llama,FLASH_ATTENTION=NO", "a/x", "b/x"]
    assert peer_names([parse_target(peer) for peer in peers]) == ["Q4_0", "Q4_0, FLASH_ATTENTION=NO", "a/x", "b/x"]
