"""The benchmark of the latency table, small: what it draws, exports and compares."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.latency_table import draw_spread, main, rank_correlation
from export.request import ExportRequest
from export.stage import export_subnet
from search.describing import write_landmark
from search.latency.stage import measure_latencies
from search.strategies.grid import Grid
from tests.support.tiny_subnets import run_with_best


def test_draws_go_from_the_largest_to_the_smallest() -> None:
    grid = Grid((2, 3, 1, 3) * 8)
    drawn = draw_spread(grid, 12, seed=0)
    assert len(set(drawn)) == 12
    assert (drawn[0], drawn[-1]) == (grid.maximal, grid.minimal)
    assert all(grid.holds(indices) for indices in drawn)
    sizes = [sum(indices) for indices in drawn]
    assert rank_correlation(range(12), [size + 0.01 * step for step, size in enumerate(sizes)]) > 0.9


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("sizes", "count"), [((2, 2), 4), ((2, 2), 2), ((2,) * 6, 12), ((2,) * 4, 16), ((3, 1, 2), 6), ((3, 1), 3)]
)
def test_draws_of_a_small_space_end(sizes: tuple[int, ...], count: int) -> None:
    grid = Grid(sizes)
    for seed in range(20):
        drawn = draw_spread(grid, count, seed=seed)
        assert len(set(drawn)) == count
        assert (drawn[0], drawn[-1]) == (grid.maximal, grid.minimal)
        assert all(grid.holds(indices) for indices in drawn)


def test_the_rank_correlation_is_spearmans() -> None:
    left, right = np.random.default_rng(0).random((2, 15))
    ranks = [np.array([sorted(values).index(value) for value in values]) for values in (left, right)]
    expected = 1 - 6 * np.square(ranks[0] - ranks[1]).sum() / (15 * (15**2 - 1))
    assert rank_correlation(left, right) == pytest.approx(expected)
    assert rank_correlation(left, -left) == pytest.approx(-1)
    # Two that are as fast tell nothing, whichever comes first.
    assert rank_correlation([1, 2, 2], [1, 2, 3]) == pytest.approx(rank_correlation([1, 2, 2], [1, 3, 2]))


@pytest.mark.slow
def test_exports_are_made_once_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = run_with_best(tmp_path, width={"feed_forward": [100, 64], "attention": [60, 30]})
    write_landmark(run, "largest", run.path / "largest.json")
    export_subnet(
        run.path / "largest.json",
        ExportRequest(output=run.path / "largest", formats=("openvino",), weight_format="int8", verify="off"),
    )
    measure_latencies(run, run.path / "largest", output=run.latency, threads=1, tokens=4, seconds=0.0)
    options = ["--run", str(run.path), "--output", str(tmp_path / "exports"), "--subnets", "3", "--rounds", "3"]
    assert main([*options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["measured_ms"]) == len(found["predicted_ms"]) == 3
    assert -1 <= found["spearman"] <= 1
    exports = {path: path.stat().st_mtime_ns for path in (tmp_path / "exports").glob("*/manifest.json")}
    assert len(exports) == 3
    assert main(options) == 0
    assert "Spearman" in capsys.readouterr().out
    (tmp_path / "exports" / "settings.json").write_text('{"super_adapter": "another"}')
    with pytest.raises(SystemExit, match="2"):
        main(options)
    assert exports == {path: path.stat().st_mtime_ns for path in exports}
