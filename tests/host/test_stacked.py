"""Adapters that were trained to be stacked: the host's own Load LoRA chain, and what the nodes say about groups."""

import json
from pathlib import Path

import pytest
from comfy_adapters import difference, kohya, write
from comfy_world import blend_model, load_loras, preference
from diffusion_blend.blending.groups import KEY


def group_files(folder, kind, group="one", rewards=("alignment", "softness", "warmth")):
    """Write the files of a group, with the headers that the trainer writes."""
    files = []
    for member, reward in enumerate(rewards):
        entry = {"kind": "stacked", "id": group, "member": member, "rewards": list(rewards)}
        header = {"diffusion_blend.reward": reward, "diffusion_blend.kl_weight": "0.1", KEY: json.dumps(entry)}
        tensors = kohya(kind, 20 + member + len(group), rank=3, alpha=6)
        files.append(Path(write(folder, f"{kind}-{group}-{reward}", tensors, header)).name)
    return files


@pytest.fixture
def said(monkeypatch):
    """Collect what the nodes say."""
    texts = []
    for module in ("adapters.groups", "samplers"):
        monkeypatch.setattr(f"diffusion_blend.nodes.{module}.notify", texts.append)
    return texts


@pytest.mark.parametrize("kind", ["sd15", "sd3"])
def test_the_hosts_load_lora_nodes_at_the_weights_give_the_picture(worlds, kind, loras_folder, said):
    import nodes as host_nodes

    world, weights = worlds(kind), (0.2, 0.5, 0.3)
    files = group_files(loras_folder, kind)
    chain = world.model
    for file, weight in zip(files, weights, strict=True):
        (chain,) = host_nodes.LoraLoaderModelOnly().load_lora_model_only(chain, file, weight)
    expected = world.sample(chain)
    counted = []
    handle = world.model.model.diffusion_model.register_forward_hook(lambda *_: counted.append(1))
    try:
        found = world.sample(blend_model(world.model, load_loras(files), preference(*weights), "stacked"))
    finally:
        handle.remove()
    assert difference(found, expected) < 1e-5
    assert len(counted) == 3  # one call a step
    assert difference(found, world.sample(blend_model(world.model, load_loras(files), preference(*weights)))) > 1e-3
    assert said[0].startswith("These adapters were trained to be stacked")  # by the blend, not by stacked
    assert len(said) == 1


@pytest.mark.parametrize("method", ["blend", "stochastic", "early"])
def test_other_methods_say_that_a_whole_group_needs_one_call(sd3, loras_folder, said, method):
    files = group_files(loras_folder, "sd3")
    blend_model(sd3.model, load_loras(files), preference(1, 1, 1), method)
    assert f"The method '{method}' does not use that" in said[0]
    said.clear()
    blend_model(sd3.model, load_loras(files), preference(1, 1, 1), "soup")  # does use it
    blend_model(sd3.model, load_loras(files[:2]), preference(1, 1), method)  # only a part of a group
    blend_model(sd3.model, sd3.loras(3), preference(1, 1, 1), method)
    assert said == []


def test_the_sampler_nodes_say_it_too(sd3, loras_folder, said):
    from diffusion_blend.nodes import samplers

    loras, run = load_loras(group_files(loras_folder, "sd3")), sd3.node_sampling(steps=1)
    calls = [
        (samplers.BlendedKSampler, {"preference": preference(1, 1, 1)}),
        (samplers.KLScaleSampler, {"kl_scale": 1.0}),
        (samplers.StochasticAdapterSampler, {"preference": preference(1, 1, 1), "draws": "stratified"}),
    ]
    for node, inputs in calls:
        said.clear()
        node.execute(sd3.model, loras, **inputs, **run)
        assert len(said) == 1 and "one model call a step only" in said[0]
    said.clear()
    run.pop("sampler_name")
    etas = {f"eta_{i}": 1.0 for i in range(1, 5)}
    samplers.MSDDASampler.execute(sd3.model, loras, preference(1, 1, 1), **etas, renormalise=False, **run)
    assert "'msdda' does not use that" in said[0]


def test_a_missing_member_is_said_and_counts_as_nothing(sd3, loras_folder, said):
    files = group_files(loras_folder, "sd3")
    blend_model(sd3.model, load_loras([files[0], files[2]]), preference(0.5, 0.5), "stacked")
    assert said == ["The group of these adapters has more members, which count as weight 0: softness."]


def test_what_is_no_group_is_refused(sd3, loras_folder):
    one, other = group_files(loras_folder, "sd3"), group_files(loras_folder, "sd3", group="other")
    wanted = preference(0.5, 0.5)
    with pytest.raises(
        ValueError, match="different groups.*alignment: group one, softness: group other.*Choose all files"
    ):
        blend_model(sd3.model, load_loras([one[0], other[1]]), wanted, "stacked")
    with pytest.raises(ValueError, match="were not trained to be stacked.*'soup', which stacks any adapters"):
        blend_model(sd3.model, sd3.loras(2), wanted, "stacked")
    with pytest.raises(ValueError, match="the same adapter is there twice"):
        blend_model(sd3.model, load_loras([one[0], one[0]]), wanted, "stacked")


def test_an_entry_that_cannot_be_read_names_the_file(sd3, loras_folder):
    file = Path(write(loras_folder, "sd3-bad-group", kohya("sd3", 9), {KEY: "no json"})).name
    with pytest.raises(
        ValueError, match=r"sd3-bad-group\.safetensors: its metadata entry diffusion_blend\.group is 'no json'"
    ):
        blend_model(sd3.model, load_loras([file]), preference(1), "stacked")
