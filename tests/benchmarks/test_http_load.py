"""The load that the documentation tells users to put on a server, for a short while."""

from __future__ import annotations

import json

import pytest

from benchmarks.http_load import MOST_GROWTH, main
from tests.support.deployments import shared_export

pytestmark = pytest.mark.slow


def test_no_request_is_lost_and_memory_does_not_grow(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    export = shared_export(tmp_path_factory)
    options = ["--minutes", "0.4", "--prompt-tokens", "32", "--max-new-tokens", "48"]
    code = main([str(export), *options, "--rounds", "1", "--threads", "1", "--precision", "fp32"])
    told = json.loads(capsys.readouterr().out)
    assert (code, told["lost"]) == (0, 0), told
    assert [level["clients"] for level in told["levels"]] == [1, 8, 32]
    assert all(level["answered"] > 10 * level["clients"] for level in told["levels"])
    assert told["memory_growth"] < MOST_GROWTH
    assert set(told["ratio_to_serve_load"]) == {"1", "8", "32"}
