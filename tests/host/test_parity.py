"""The blend equals a reference in which the host itself patches the weights for every adapter.

The relative difference stays below 1e-4 in float32 after a whole sampling run. `make test` runs a covering selection. The
whole product of cases runs by ``pytest -m full tests/host/test_parity.py``.
"""

import itertools

import comfy_models
import pytest
import torch
from comfy_world import blend_model, difference, preference, weights_of
from diffusion_blend.nodes.samplers import BlendedKSampler, KLScaleSampler

SAMPLERS = ("euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_sde", "ddpm", "ddim", "uni_pc", "lcm")
COUNTS = (1, 2, 3, 5)
KL_SCALES = (-0.5, 0.0, 0.5, 1.0, 2.0)
EVALUATIONS = ("sequential", "batched")

# Every sampler, and every pair of (count, KL scale), occurs; cfg, batch and evaluation alternate through them.
COVERING = [
    (
        count,
        kl_scale,
        (1.0, 7.0)[(i + i // 5) % 2],
        (3, 1)[i % 2],
        SAMPLERS[i % len(SAMPLERS)],
        EVALUATIONS[(i // 2) % 2],
    )
    for i, (count, kl_scale) in enumerate(itertools.product(COUNTS, KL_SCALES))
]
PRODUCT = list(itertools.product(COUNTS, KL_SCALES, (1.0, 7.0), (1, 3), SAMPLERS, EVALUATIONS))


def check(world, count, kl_scale, cfg, batch, sampler_name, evaluation):
    weights = weights_of(count)
    run = {"cfg": cfg, "sampler_name": sampler_name, "latent": comfy_models.latent(world.kind, batch)}
    blended = blend_model(
        world.model, world.loras(count), preference(*weights, kl_scale=kl_scale), evaluation=evaluation
    )
    reference = world.patched.blended(world.adapters[:count], [kl_scale * w for w in weights])
    expected = world.sample(reference, **run)
    assert difference(world.sample(blended, **run), expected) < 1e-4
    if kl_scale != 0:  # the adapters have an effect
        assert difference(world.sample(world.model, **run), expected) > 1e-2


@pytest.mark.parametrize("case", COVERING, ids=str)
def test_transformer_with_fused_qkv(sd3, case):
    check(sd3, *case)


@pytest.mark.parametrize("case", COVERING[::2], ids=str)
def test_sd15(sd15, case):
    check(sd15, *case)


@pytest.mark.parametrize(
    "case", [(2, 1.0, 7.0, 1, "euler_ancestral", "sequential"), (2, 2.0, 7.0, 1, "dpmpp_2m", "batched")], ids=str
)
def test_sdxl(worlds, case):
    check(worlds("sdxl"), *case)


@pytest.mark.full
def test_whole_product(worlds, kind, case):
    check(worlds(kind), *case)


def pytest_generate_tests(metafunc):
    """Make the whole product of cases only for a run of the full tests, because making it takes most of a collection."""
    if metafunc.function is test_whole_product:
        expression = metafunc.config.option.markexpr
        asked = "full" in expression and "not full" not in expression
        metafunc.parametrize("case", PRODUCT if asked else PRODUCT[:1], ids=str)
        metafunc.parametrize("kind", ["sd15", "sdxl", "sd3"] if asked else ["sd15"])


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_kl_scale_zero_is_the_base_bit_for_bit(world, evaluation):
    blended = blend_model(world.model, world.loras(2), preference(0.5, 0.5, kl_scale=0.0), evaluation=evaluation)
    assert torch.equal(world.sample(blended), world.sample(world.model))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_all_weight_on_one_adapter_is_the_hosts_lora_loader(world, which):
    import nodes as host_nodes

    weights = [0.0] * 3
    weights[which] = 0.7
    blended = blend_model(world.model, world.loras(3), preference(*weights))
    (loaded,) = host_nodes.LoraLoaderModelOnly().load_lora_model_only(world.model, world.files[which], 1.0)
    expected = world.sample(loaded)
    assert difference(world.sample(blended), expected) < 1e-5
    assert difference(world.sample(world.model), expected) > 1e-2


def test_strength_is_the_hosts_strength(sd15):
    import nodes as host_nodes
    from comfy_world import load_loras

    blended = blend_model(sd15.model, load_loras(sd15.files[:1], [-0.6]), preference(1.0))
    (loaded,) = host_nodes.LoraLoaderModelOnly().load_lora_model_only(sd15.model, sd15.files[0], -0.6)
    assert difference(sd15.sample(blended), sd15.sample(loaded)) < 1e-5


def test_soup_is_the_hosts_stack_of_loras(world):
    import nodes as host_nodes

    weights = weights_of(3)
    blended = blend_model(world.model, world.loras(3), preference(*weights), "soup")
    stacked = world.model
    for file, weight in zip(world.files[:3], weights, strict=True):
        (stacked,) = host_nodes.LoraLoaderModelOnly().load_lora_model_only(stacked, file, weight)
    assert difference(world.sample(blended), world.sample(stacked)) < 1e-5


def hooked(conditioning, world, weights):
    """Return one copy of a conditioning per adapter, each with the host's LoRA hook and a strength."""
    import comfy.hooks
    import comfy.lora
    import comfy.utils
    import node_helpers

    combined = []
    for tensors, weight in zip(world.adapters, weights, strict=False):
        hooks = comfy.hooks.create_hook_lora(lora=dict(tensors), strength_model=1.0, strength_clip=0.0)
        copy = comfy.hooks.set_hooks_for_conditioning(conditioning, hooks)
        combined += node_helpers.conditioning_set_values(copy, {"strength": weight})
    return combined


@pytest.mark.parametrize("count", [2, 3])
def test_the_hosts_own_lora_hooks_give_the_same_image(sd15, count):
    weights = weights_of(count)
    blended = blend_model(sd15.model, sd15.loras(count), preference(*weights))
    conds = {name: hooked(getattr(sd15, name), sd15, weights) for name in ("positive", "negative")}
    expected = sd15.sample(sd15.model, **conds)
    assert difference(sd15.sample(blended), expected) < 1e-4


def test_blended_ksampler_is_the_hosts_ksampler_on_a_blended_model(world):
    weights = preference(0.3, 0.7, kl_scale=1.5)
    (result,) = BlendedKSampler.execute(world.model, world.loras(2), weights, **world.node_sampling()).args
    assert torch.equal(result["samples"], world.sample(blend_model(world.model, world.loras(2), weights)))


def test_kl_scale_sampler_uses_equal_weights_or_the_preferences(sd3):
    plain = KLScaleSampler.execute(sd3.model, sd3.loras(2), kl_scale=1.5, **sd3.node_sampling()).args[0]["samples"]
    assert torch.equal(plain, sd3.sample(blend_model(sd3.model, sd3.loras(2), preference(0.5, 0.5, kl_scale=1.5))))
    weighted = KLScaleSampler.execute(
        sd3.model, sd3.loras(2), kl_scale=1.5, preference=preference(0.2, 0.8, kl_scale=0.0), **sd3.node_sampling()
    ).args[0]["samples"]
    assert torch.equal(weighted, sd3.sample(blend_model(sd3.model, sd3.loras(2), preference(0.2, 0.8, kl_scale=1.5))))


def test_unequal_kl_weights_in_the_files_weigh_the_preference(sd3, loras_folder, caplog):
    from comfy_adapters import write
    from comfy_world import load_loras

    for name, tensors, alpha in (("weak", sd3.adapters[0], 0.1), ("strong", sd3.adapters[1], 0.4)):
        write(loras_folder, name, tensors, {"diffusion_blend.kl_weight": str(alpha), "diffusion_blend.reward": name})
    loras = load_loras(["weak.safetensors", "strong.safetensors"])
    assert loras.names == ["weak", "strong"]
    with caplog.at_level("INFO", logger="diffusion_blend"):
        blended = blend_model(sd3.model, loras, preference(0.5, 0.5, kl_scale=2.0))
    assert "unequal KL weights (weak 0.1, strong 0.4)" in caplog.text
    expected = sd3.sample(sd3.patched.blended(sd3.adapters[:2], [2 * 0.05 / 0.25, 2 * 0.2 / 0.25]))
    assert difference(sd3.sample(blended), expected) < 1e-4


def test_what_a_node_says_appears_on_the_running_node(monkeypatch):
    import sys
    from types import SimpleNamespace

    from comfy_execution.utils import CurrentNodeContext
    from diffusion_blend.nodes.engine.notices import notify

    said = []
    instance = SimpleNamespace(send_progress_text=lambda text, node_id: said.append((text, node_id)))
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=instance)))
    notify("outside a run")
    with CurrentNodeContext("prompt", "7"):
        notify("on node 7")
    assert said == [("on node 7", "7")]
