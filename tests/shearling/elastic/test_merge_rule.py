"""The table of merge modes (design.md), every row."""

from __future__ import annotations

import pytest

from shearling.elastic.merge_rule import merge_rule, resolve_merge
from shearling.errors import MergeRefused

MASKED = merge_rule(masked_training=True, sparse=True)
PLAIN = merge_rule(masked_training=False, sparse=True)
DENSE = merge_rule(masked_training=False, sparse=False)
ON_GRID = merge_rule(masked_training=False, sparse=False, grid_bits=4)


@pytest.mark.parametrize(("rule", "default"), [(MASKED, "masked"), (PLAIN, "separate"), (DENSE, "dense")])
def test_the_default_is_exact(rule, default):
    assert resolve_merge(rule, None, allow_approximate=False, sparse=True) == default
    assert default in rule.allowed
    assert rule.reason


@pytest.mark.parametrize(
    ("rule", "mode"), [(MASKED, "masked"), (PLAIN, "separate"), (PLAIN, "dense"), (DENSE, "dense"), (DENSE, "separate")]
)
@pytest.mark.parametrize("approximate", [True, False])
def test_exact_modes_are_done(rule, mode, approximate):
    assert resolve_merge(rule, mode, allow_approximate=approximate, sparse=True) == mode


@pytest.mark.parametrize("mode", ["separate", "dense"])
@pytest.mark.parametrize("approximate", [True, False])
def test_dropping_a_mask_is_always_refused(mode, approximate):
    with pytest.raises(MergeRefused, match="--merge masked") as caught:
        resolve_merge(MASKED, mode, allow_approximate=approximate, sparse=True)
    assert caught.value.exit_code == 2
    assert f"'{mode}'" in caught.value.message


def test_masking_a_plain_adapter_needs_consent():
    with pytest.raises(MergeRefused, match="--allow-approximate") as caught:
        resolve_merge(PLAIN, "masked", allow_approximate=False, sparse=True)
    assert caught.value.exit_code == 2
    assert resolve_merge(PLAIN, "masked", allow_approximate=True, sparse=True) == "masked"


@pytest.mark.parametrize(("rule", "remedy"), [(DENSE, "--merge dense"), (ON_GRID, "--merge separate")])
@pytest.mark.parametrize("approximate", [True, False])
def test_a_dense_base_has_no_mask_to_merge_under(rule, remedy, approximate):
    with pytest.raises(MergeRefused, match=remedy):
        resolve_merge(rule, "masked", allow_approximate=approximate, sparse=False)
