"""The search space: expansion, choices, and everything it refuses (invariants 19 and 20, algorithms 6.1)."""

import json

import pytest

from shearling.elastic.search_space import read_search_space, rounded_count
from shearling.errors import DocumentInvalid
from tests.support.search_spaces import make_space


def test_groups_are_layer_major_with_absolute_modules():
    groups = make_space().groups
    assert [group.id for group in groups] == [
        "layers.0.qk",
        "layers.0.up",
        "layers.1.qk",
        "layers.1.up",
        "layers.2.qk",
        "layers.2.up",
    ]
    assert groups[2].modules == ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj")
    assert make_space().size == 3**3 * 2**3
    assert [group.id for group in make_space(layers=(0, 2)).groups] == [
        "layers.0.qk",
        "layers.0.up",
        "layers.2.qk",
        "layers.2.up",
    ]


@pytest.mark.parametrize(
    ("values", "median"),
    [((32, 28), 32), ((32, 24, 16), 24), ((32, 28, 24, 20, 16), 24), ((32,), 32), ((32, 28, 24, 20), 28)],
)
def test_heuristic_takes_index_floor_n_minus_one_half(values, median):
    assert make_space(values=values).heuristic()["layers.0.qk"] == median


def test_members_of_a_group_share_their_rank():
    space = make_space()
    ranks = space.ranks({**space.maximal(), "layers.1.qk": 16})
    assert ranks["model.layers.1.self_attn.q_proj"] == ranks["model.layers.1.self_attn.k_proj"] == 16
    assert len(ranks) == 9


def test_encode_and_decode_are_inverse():
    space = make_space()
    for choice in (space.maximal(), space.minimal(), space.heuristic()):
        assert space.decode(space.encode(choice)) == choice
    assert space.encode(space.maximal()) == (0,) * 6


@pytest.mark.parametrize("value", [20, 0, -16, 64, True, 24.0, "24", None])
def test_a_value_outside_the_list_is_refused_and_the_list_is_shown(value):
    space = make_space()
    with pytest.raises(DocumentInvalid, match="Allowed: 32, 24, 16"):
        space.check({**space.maximal(), "layers.1.qk": value})


def test_missing_and_unknown_groups_are_refused():
    space = make_space()
    choice = space.maximal()
    with pytest.raises(DocumentInvalid, match=r"unknown group layers\.9\.qk"):
        space.check({**choice, "layers.9.qk": 32})
    del choice["layers.2.up"]
    with pytest.raises(DocumentInvalid, match=r"the first is layers\.2\.up"):
        space.check(choice)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (("templates", 0, "values"), [16, 24], "strictly descending"),
        (("templates", 0, "values"), [24, 16], "must start at r_max"),
        (("templates", 0, "values"), [32, 0], "at least 1"),
        (("templates", 0, "values"), [32, 24.0], "valid integer"),
        (("templates", 0, "modules"), ["mlp.up_proj"], "more than one rank group"),
        (("templates", 0, "name"), "up", "same name"),
        (("layers",), [0, 0], "must ascend"),
        (("layers",), [5], "must ascend"),
        (("order",), "kind-major", "layer-major"),
        (("colour",), 1, "not permitted"),
        (("schema",), "shearling.search_space/2", "newer"),
    ],
)
def test_a_bad_document_names_the_field(tmp_path, field, value, message):
    document = make_space().model_dump(mode="json", by_alias=True)
    place = document
    for part in field[:-1]:
        place = place[part]
    place[field[-1]] = value
    path = tmp_path / "search_space.json"
    path.write_text(json.dumps(document))
    with pytest.raises(DocumentInvalid, match=message):
        read_search_space(path)


def test_round_trip(tmp_path):
    path = tmp_path / "search_space.json"
    path.write_text(json.dumps(make_space().model_dump(mode="json", by_alias=True)))
    assert read_search_space(path) == make_space()


def test_every_rank_may_be_taken_where_several_may_and_nothing_else_changes():
    space = make_space(values=(32,))
    wider = space.of_every_rank()
    assert [group.id for group in wider.groups] == [group.id for group in space.groups]
    for group, wide in zip(space.groups, wider.groups, strict=True):
        assert wide.values == (group.values if len(group.values) == 1 else tuple(range(32, 0, -1)))
    assert wider.maximal() == space.maximal()
    assert (wider.adapter, wider.num_layers) == (space.adapter, space.num_layers)
    assert space.groups[1].values == (32, 16)


@pytest.mark.parametrize(
    ("count", "told"),
    [(1, "1"), (9_999, "9999"), (10_000, "1.0e+4"), (8_734 * 10**39, "8.7e+42"), (5**448, "1.4e+313")],
)
def test_a_number_of_sub_networks_is_told_however_large(count, told):
    assert rounded_count(count) == told
