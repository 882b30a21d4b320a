"""Cross adapters in the nodes: their gates follow from the preference, and they have no weight of their own."""

import json
from pathlib import Path

import pytest
from comfy_adapters import difference, kohya, write
from comfy_world import blend_model, load_loras, preference
from diffusion_blend.blending.groups import KEY, fingerprint
from diffusion_blend.nodes.adapters.groups import pairs_of


@pytest.fixture
def said(monkeypatch):
    """Collect what the nodes say about groups."""
    texts = []
    monkeypatch.setattr("diffusion_blend.nodes.adapters.groups.notify", texts.append)
    return texts


def cross_file(folder, kind, loras, name="pair", rewards=("a x b",)):
    """Write a cross adapter of the first two adapters, as ``bake --method cross`` does, with content of some effect."""
    marks = [fingerprint(adapter.tensors) for adapter in loras.adapters[:2]]
    entry = {"kind": "cross", "id": "one", "member": 0, "rewards": rewards, "pair": marks, "pair_names": ["a", "b"]}
    tensors = kohya(kind, 31, rank=3)
    return Path(write(folder, f"{kind}-{name}.cross", tensors, {KEY: json.dumps(entry)})).name


@pytest.mark.parametrize("kind", ["sd15", "sd3"])
def test_the_picture_is_that_of_the_hosts_own_loader_with_the_gate_as_strength(worlds, kind, loras_folder, said):
    import nodes as host_nodes

    world = worlds(kind)
    file = cross_file(loras_folder, kind, world.loras(2))
    chain = world.model
    for name, strength in zip([*world.files[:2], file], (0.25, 0.75, 0.75), strict=True):
        (chain,) = host_nodes.LoraLoaderModelOnly().load_lora_model_only(chain, name, strength)
    loras = load_loras([file, *world.files[:2]])  # in any slot
    assert [adapter.file for adapter in loras] == world.files[:2]
    assert pairs_of(loras) == ((0, 1),)
    found = world.sample(blend_model(world.model, loras, preference(0.9, 0.25, 0.75), "soup"))
    assert difference(found, world.sample(chain)) < 1e-5
    corner = blend_model(world.model, loras, preference(0.0, 0.0, 1.0), "soup")
    assert difference(world.sample(corner), world.sample(blend_model(world.model, loras, preference(0, 0, 1)))) < 1e-5
    assert said == [said[0]] and "The method 'blend' does not use them" in said[0]


def test_other_methods_are_as_without_it(sd3, loras_folder, said):
    file, wanted = cross_file(loras_folder, "sd3", sd3.loras(2)), preference(0.4, 0.6)
    loras = load_loras([*sd3.files[:2], file])
    for method in ("blend", "stochastic"):
        with_cross = sd3.sample(blend_model(sd3.model, loras, wanted, method))
        assert difference(with_cross, sd3.sample(blend_model(sd3.model, sd3.loras(2), wanted, method))) < 1e-5


def test_a_missing_member_is_said(sd3, loras_folder, said):
    file = cross_file(loras_folder, "sd3", sd3.loras(2), "part", ("a x b", "a x c"))
    loras = load_loras([sd3.files[0], file])
    found = sd3.sample(blend_model(sd3.model, loras, preference(1.0), "soup"))
    assert "the cross adapter of a and b, which are not both there" in said[0]
    assert "has more files, which are not there: a x c" in said[1]
    assert difference(found, sd3.sample(blend_model(sd3.model, sd3.loras(1), preference(1.0)))) < 1e-5


def test_cross_adapters_alone_are_no_adapters(sd3, loras_folder):
    with pytest.raises(ValueError, match="Choose at least one|at least one"):
        load_loras([cross_file(loras_folder, "sd3", sd3.loras(2), "alone")])


def test_a_merged_file_holds_the_cross_adapter_too(sd15, loras_folder):
    import nodes as host_nodes
    from diffusion_blend.nodes.bake import BakeBlend

    loras = load_loras([*sd15.files[:2], cross_file(loras_folder, "sd15", sd15.loras(2), "baked")])
    wanted = preference(0.25, 0.75)
    name = BakeBlend.execute(sd15.model, loras, wanted, filename="crossed", rank=0, precision="float32").args[1]
    try:
        (loaded,) = host_nodes.LoraLoaderModelOnly().load_lora_model_only(sd15.model, name, 1.0)
        assert difference(sd15.sample(loaded), sd15.sample(blend_model(sd15.model, loras, wanted, "soup"))) < 1e-5
    finally:
        (Path(loras_folder) / name).unlink()
