"""Nodes of the host around a blend, by every method; the whole matrix by ``-m full``."""

import comfy_cases
import pytest

DEFAULT = [
    ("Skip Layer Guidance (DiT)", ("batched", "early")),
    ("Normalized Attention Guidance", ("batched",)),
    ("Self-Attention Guidance", ("batched",)),
    ("EasyCache", ("batched",)),
    ("LazyCache", ("early",)),
    ("Dual CFG Guider", ("batched",)),
    ("Split Sigmas in two stages", ("stochastic",)),
    ("Context windows over the batch (dim 0)", ("batched", "stochastic")),
]
BY_NAME = {case.name: case for case in comfy_cases.CASES}


def check(worlds, name, methods):
    case = BY_NAME[name]
    if not case.exists():
        pytest.skip(f"this host has no {name}")
    found = comfy_cases.outcomes(worlds(case.kind), case, methods)
    wrong = {method: each for method, each in found.items() if not each.startswith(("right", "refused"))}
    assert not wrong


@pytest.mark.parametrize(("name", "methods"), DEFAULT)
def test_some_nodes(worlds, name, methods):
    check(worlds, name, methods)


@pytest.mark.full
@pytest.mark.parametrize("name", list(BY_NAME))
def test_every_node_by_every_method(worlds, name):
    check(worlds, name, comfy_cases.METHODS)
