"""MODELs that other nodes compile or cache: the blend is the same as without them, or it is refused. It is never the base."""

import logging

import comfy_models
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_world import blend_model, difference, load_loras, preference


def compiled(model):
    """Compile a MODEL as TorchCompileModel does, with the one backend that needs no compiler."""
    changed = model.clone()
    set_torch_compile_wrapper(changed, backend="eager")
    return changed


@pytest.mark.parametrize("blend_first", [True, False])
def test_a_compiled_model_is_blended_without_its_compiler(sd3, blend_first, caplog):
    wanted = preference(0.3, 0.7)
    plain, blended = sd3.sample(sd3.model), sd3.sample(blend_model(sd3.model, sd3.loras(2), wanted))
    model = compiled(sd3.model)
    assert torch.equal(sd3.sample(model), plain)  # from now on there is code without hooks
    if blend_first:
        both = compiled(blend_model(sd3.model, sd3.loras(2), wanted))
    else:
        both = blend_model(model, sd3.loras(2), wanted)
    with caplog.at_level(logging.WARNING, "diffusion_blend"):
        assert torch.equal(sd3.sample(both), blended)
    assert "without torch.compile" in caplog.text
    assert torch.equal(sd3.sample(model), plain)  # the host's own compiler is still in place
    assert model.wrappers[WrappersMP.APPLY_MODEL]["torch.compile"]


def test_parts_that_others_compiled_are_refused(sd3):
    blended = blend_model(sd3.model, sd3.loras(2), preference(0.3, 0.7))
    expected = sd3.sample(blended)
    patched = blended.clone()
    whole = patched.get_model_object("diffusion_model")
    patched.add_object_patch("diffusion_model", torch.compile(whole, backend="eager"))
    with pytest.raises(ValueError, match=r"diffusion_model is compiled by torch\.compile"):
        sd3.sample(patched)
    block = sd3.model.model.diffusion_model.joint_blocks[1]
    block.compile(backend="eager")
    try:
        with pytest.raises(ValueError, match=r"joint_blocks\.1 is compiled by torch\.compile"):
            sd3.sample(blended)
    finally:
        block._compiled_call_impl = None
    assert torch.equal(sd3.sample(blended), expected)


def test_code_that_calls_no_layer_is_an_error(sd3):
    """A node that computes the network without its modules is refused."""
    blended = blend_model(sd3.model, sd3.loras(2), preference(0.3, 0.7))

    class Elsewhere(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network, self.dtype = network, network.dtype

        def __getattr__(self, name):
            return super().__getattr__(name) if name == "network" else getattr(self.network, name)

        def forward(self, x, *args, **kwargs):
            return torch.zeros_like(x)

    model = blended.clone()
    model.add_object_patch("diffusion_model", Elsewhere(model.get_model_object("diffusion_model")))
    with pytest.raises(RuntimeError, match=r"None of the adapters' \d+ layers was called"):
        sd3.sample(model)


def cached(model, node):
    import comfy_extras.nodes_easycache

    return getattr(comfy_extras.nodes_easycache, node).execute(model, 3.0, 0.0, 1.0, False).args[0]


@pytest.mark.parametrize("node", ["EasyCacheNode", "LazyCacheNode"])
def test_a_cache_between_steps_works_as_on_a_patched_model(worlds, node):
    """A blend of two equal adapters equals a copy of the checkpoint that the host patched; both are cached."""
    world = worlds("sd15")
    run = {"steps": 8, "latent": comfy_models.latent("sd15", 1)}  # 0.3.64's EasyCache takes one image at a time
    patched = world.patched.model(world.adapters[0])
    expected = world.sample(cached(patched, node), **run)
    assert difference(expected, world.sample(patched, **run)) > 1e-3  # the cache skipped at least one step
    loras, wanted = load_loras([world.files[0]] * 2), preference(0.3, 0.7)
    blended = cached(blend_model(world.model, loras, wanted), node)
    assert difference(world.sample(blended, **run), expected) < 1e-4
    other_way = blend_model(cached(world.model, node), loras, wanted)
    assert difference(world.sample(other_way, **run), expected) < 1e-4
