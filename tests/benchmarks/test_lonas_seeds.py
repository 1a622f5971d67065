"""What the benchmark of elastic widths refuses before it trains anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.lonas_seeds import main


@pytest.mark.parametrize("tune_steps", ["4000", "-1"])
def test_tuning_leaves_steps_to_the_super_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tune_steps: str
) -> None:
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path / "out"), "--tune-steps", tune_steps])
    assert "leaves no step of 4000" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
