"""One walk over a network's modules for all runs, repeated where the tree has changed."""

import gc
import weakref

import torch
from comfy_world import blend_model, difference, preference
from diffusion_blend.nodes.engine.module_tree import ModuleTree, ModuleTrees, clearing_methods
from torch import nn


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())

    def clear_kv_cache(self):
        pass


def network():
    whole = nn.Module()
    whole.first, whole.second = Holder(), Holder()
    whole.again = whole.first
    return whole


def test_the_names_are_torchs_own_and_state_is_looked_for_once():
    whole = network()
    tree = ModuleTree(whole)
    assert tree.named() == dict(whole.named_modules(remove_duplicate=False))
    assert tree.stateful() == [whole.first, whole.second]
    assert [method.__self__ for module in tree.stateful() for method in clearing_methods(module)] == tree.stateful()


def test_a_tree_holds_until_a_module_is_replaced_added_or_removed():
    whole, trees = network(), ModuleTrees()
    tree = trees.of(whole)
    assert trees.of(whole) is tree
    for change in (
        lambda: setattr(whole.second, "inner", nn.Linear(2, 2)),
        lambda: whole.first.inner.append(nn.ReLU()),
        lambda: delattr(whole, "again"),
        lambda: setattr(whole.first.inner[0], "more", nn.Linear(2, 2)),  # below a layer that had no children
    ):
        change()
        assert not tree.is_current()
        tree = trees.of(whole)
        assert tree.named() == dict(whole.named_modules(remove_duplicate=False))


def test_compiled_parts_are_found_at_any_time():
    whole = network()
    tree = ModuleTree(whole)
    assert tree.compiled() is None
    whole.second.inner.compile(backend="eager")
    assert tree.is_current()
    assert tree.compiled() == "second.inner"


def test_a_tree_keeps_no_module_alive():
    whole, trees = network(), ModuleTrees()
    gone = weakref.ref(whole.second)
    trees.of(whole)
    whole.second = Holder()
    gc.collect()
    assert gone() is None


def test_runs_with_the_same_adapters_walk_once_and_a_replaced_layer_is_hooked(sd3, monkeypatch):
    """A second preference walks over nothing, and a block that another node has exchanged since takes its adapters along."""
    import copy

    walks = []
    walk = nn.Module.named_modules
    monkeypatch.setattr(nn.Module, "named_modules", lambda self, *a, **k: walks.append(self) or walk(self, *a, **k))
    loras, model = sd3.loras(2), sd3.model
    own = model.model

    def run(*weights):
        walks.clear()
        image = sd3.sample(blend_model(model, loras, preference(*weights)))
        return image, sum(1 for module in walks if module is own)

    first, _ = run(0.3, 0.7)
    assert run(0.3, 0.7)[1] == run(0.6, 0.4)[1]
    blocks = own.diffusion_model.joint_blocks
    before = blocks[0]
    blocks[0] = copy.deepcopy(before)
    try:
        assert difference(run(0.3, 0.7)[0], first) < 1e-6
    finally:
        blocks[0] = before
    assert torch.equal(run(0.3, 0.7)[0], first)
