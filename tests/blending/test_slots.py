"""Weights keep to their slots: laws over random chains of loaders and weight nodes, and hand-written cases."""

import pytest
from diffusion_blend.blending.changing_preference import PreferenceSchedule
from diffusion_blend.blending.preference import Preference
from diffusion_blend.blending.slots import ignored_weights, loaders_of_nodes, misplaced_weights, weight_places
from hypothesis import assume, given
from hypothesis import strategies as st

slots = st.lists(st.booleans(), min_size=4, max_size=4)
weights = st.lists(st.floats(0.01, 1), min_size=4, max_size=4)


def names_of(loaders):
    return [f"loader {k} slot {i}" for k, used in enumerate(loaders) for i, is_used in enumerate(used) if is_used]


def preference(values, nodes):
    return Preference(tuple(values), 1.0, (4,) * nodes)


@given(st.lists(slots, min_size=1, max_size=3), st.data())
def test_with_a_node_for_each_loader_every_adapter_has_the_weight_of_its_slot(loaders, data):
    """Truth: the weights of a table, each read at (loader, slot)."""
    table = [data.draw(weights) for _ in loaders]
    names = names_of(loaders)
    assume(names)
    got = preference([value for row in table for value in row], len(loaders)).arranged(loaders, names)
    wanted = {f"loader {k} slot {i}": table[k][i] for k in range(len(loaders)) for i in range(4)}
    assert dict(zip(names, got.weights, strict=True)) == {name: wanted[name] for name in names}
    assert got.nodes == ()


@given(slots, weights)
def test_switching_a_slot_off_keeps_the_other_adapters_proportions(used, values):
    assume(sum(used) >= 2)
    full = dict(zip(names_of([used]), preference(values, 1).arranged([used], names_of([used])).weights, strict=True))
    off = used.index(True)
    fewer = [is_used and i != off for i, is_used in enumerate(used)]
    names = names_of([fewer])
    got = preference(values, 1).arranged([fewer], names)
    total = sum(full[name] for name in names)
    assert got.normalised(names) == pytest.approx([full[name] / total for name in names])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=2), weights, weights)
def test_without_an_empty_slot_before_a_used_one_the_weights_go_in_order(counts, first, second):
    """The rule of the versions before: weight i belongs to the i-th adapter of all."""
    assume(len(counts) == 1 or counts[0] == 4)
    loaders = [[True] * count for count in counts]
    names = names_of(loaders)
    values = [*first, *second][: len(names)]
    padded = [*values, *[0.0] * (8 - len(values))]
    for nodes in (1, 2) if len(names) <= 4 and len(counts) == 1 else (2,):
        assert preference(padded[: 4 * nodes], nodes).arranged(loaders, names).weights == tuple(values)


def test_one_node_reaches_the_second_loader():
    loaders = [[True, True], [True, False, True]]
    got = preference([0.1, 0.2, 0.3, 0.4], 1)
    assert weight_places(loaders, (4,)) == (0, 1, 2, None)
    with pytest.raises(ValueError, match=r"4 weights for 4 adapters \(a, b, c, d\): d have none. Chain a second"):
        got.arranged(loaders, "abcd")
    assert got.arranged([loaders[0], [True, True]], "abcd").weights == (0.1, 0.2, 0.3, 0.4)


def test_two_nodes_reach_all_adapters_of_one_long_loader():
    chained = preference([0.1, 0.2, 0.3, 0.4], 1).followed_by(preference([0.5, 0.6, 0.0, 0.0], 1))
    assert chained.arranged([[True] * 6], "abcdef").weights == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


def test_a_slot_that_is_switched_off_keeps_its_place_before_the_next_loader():
    assert preference([0.1, 0.2, 0.3, 0.4], 1).arranged([[True, False], [True]], "ac").weights == (0.1, 0.3)


def test_a_weight_without_a_loader_is_refused_and_one_of_an_empty_slot_is_named():
    used = [False, True, True, False]
    values = preference([0.5, 0.3, 0.2, 0.0], 1)
    assert ignored_weights(values.weights, values.nodes, [used]) == ["weight_1 (0.5)"]
    assert values.arranged([used], "bc").weights == (0.3, 0.2)
    chained = values.followed_by(preference([0.0, 0.25, 0.0, 0.0], 1))
    with pytest.raises(ValueError, match="weight_2 of Preference Weights number 2 is 0.25, but there is no adapter"):
        chained.arranged([used], "bc")


def test_preferences_of_one_weight_per_adapter_stay():
    plain = Preference((0.5, 0.5))
    assert plain.arranged([[False, True, True, False]], "bc") is plain


def test_schedules_arrange_both_ends():
    used = [False, True, True, False]
    moving = PreferenceSchedule(preference([9, 1, 0, 0], 1), preference([9, 0, 1, 0], 1)).arranged([used], "bc")
    assert [part.weights for part in moving.parts] == [(1, 0), (0, 1)]


FIRST, SECOND, THIRD = ("bright", "warm"), ("soft", "sharp"), ("old", "new")
CHAIN = (FIRST, SECOND, THIRD)


def slots_of(loaders):
    return [[True] * len(loader) for loader in loaders], [name for loader in loaders for name in loader]


@pytest.mark.parametrize("bypassed", [False, True])
@pytest.mark.parametrize("gone", range(3))
def test_a_loader_that_takes_no_part_takes_its_own_weights_along_and_no_others(gone, bypassed):
    """Every node is connected to its own loader. The host drops a connection to a muted one, and in place of a bypassed one
    hands on the loader before it."""
    left = [loader for k, loader in enumerate(CHAIN) if k != gone]
    loaders, names = slots_of(left)
    before = [tuple(CHAIN[j] for j in range(k + 1) if j != gone) for k in range(3)]
    links = [None if k == gone and not (bypassed and before[k]) else before[k] for k in range(3)]
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    own = dict(zip((name for loader in CHAIN for name in loader), values, strict=True))
    got = Preference(tuple(values), 1.0, (2, 2, 2), tuple(links)).arranged(loaders, names)
    assert dict(zip(names, got.weights, strict=True)) == {name: own[name] for name in names}
    assert not misplaced_weights(values, (2, 2, 2), links, loaders, names)
    placed = loaders_of_nodes(loaders, names, (2, 2, 2), links)
    assert len(ignored_weights(values, (2, 2, 2), placed)) == 2  # and it is said


@pytest.mark.parametrize(
    "links",
    [
        (None, None, None),  # not connected
        ((FIRST, SECOND), (FIRST, SECOND), None),  # both to the last loader
        ((FIRST, SECOND), (FIRST,), None),  # in another order
        ((THIRD,), None, None),  # to a loader that does not take part
    ],
)
def test_connections_that_do_not_tell_leave_the_order(links):
    loaders, names = slots_of((FIRST, SECOND))
    assert loaders_of_nodes(loaders, names, (2, 2, 2), links) == loaders
    plain = Preference((0.1, 0.2, 0.3, 0.4, 0, 0), 1.0, (2, 2, 2))
    linked = Preference((0.1, 0.2, 0.3, 0.4, 0, 0), 1.0, (2, 2, 2), links)
    assert linked.arranged(loaders, names) == plain.arranged(loaders, names)


@pytest.mark.parametrize(
    ("link", "loaders", "weights", "said"),
    [
        ((FIRST,), (FIRST,), (0.5, 0.5, 0, 0), []),
        ((FIRST,), (SECOND,), (0.5, 0, 0, 0), ["weight_1 (bright there, soft here)"]),
        ((FIRST,), (FIRST, SECOND), (0.5, 0, 0, 0), []),
        ((FIRST,), (FIRST, SECOND), (0.5, 0, 0, 0.5), ["weight_4 (no adapter there, sharp here)"]),
        ((FIRST, SECOND), (FIRST,), (0.5, 0, 0.5, 0), ["weight_3 (soft there, no adapter here)"]),
        (None, (SECOND,), (0.5, 0, 0, 0), []),
    ],
)
def test_weights_that_go_to_other_adapters_than_their_node_shows_are_named(link, loaders, weights, said):
    used, names = slots_of(loaders)
    assert misplaced_weights(weights, (4,), (link,), used, names) == said


def test_a_preference_that_follows_keeps_what_each_node_is_connected_to():
    first = Preference((1.0, 0.0), nodes=(2,))
    second = Preference((0.0, 1.0), nodes=(2,), links=((SECOND,),))
    assert first.followed_by(second).links == (None, (SECOND,))
    assert first.followed_by(first).links == ()
    assert first.followed_by(second).at_kl_scale(2).links == (None, (SECOND,))
