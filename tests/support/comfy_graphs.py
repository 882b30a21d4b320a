"""Parts of graphs for the matrix of nodes: control networks, hooks, guiders, split schedules and masks, made small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.gligen
import comfy.model_patcher
import comfy.ops
import comfy.samplers
import comfy_models
import node_helpers
import nodes as host_nodes
import torch
from comfy_adapters import predict
from torch import Tensor

CPU = torch.device("cpu")


def two_conditionings(world: Any) -> dict[str, Any]:
    """Two positives, so that a branch has two calls."""
    return {"positive": world.positive + comfy_models.conditioning(world.kind, 8, length=5)}


def masked(world: Any) -> dict[str, Any]:
    """A latent with a mask that rises from left to right."""
    latent = comfy_models.latent(world.kind, 2)
    latent["samples"] = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(9))
    return {"latent": latent | {"noise_mask": torch.linspace(0, 1, 64).repeat(1, 1, 64, 1)}}


def later_images(world: Any) -> dict[str, Any]:
    """The images 3 and 5 of a batch, as Latent From Batch gives them."""
    return {"latent": comfy_models.latent(world.kind, 2) | {"batch_index": [3, 5]}}


def frames(world: Any) -> dict[str, Any]:
    """A video of five frames."""
    return {"latent": {"samples": torch.zeros(1, 16, 5, 8, 8)}}


def references(world: Any) -> dict[str, Any]:
    """An image to edit, with either prompt."""
    image = torch.randn(1, comfy_models.CHANNELS[world.kind], 8, 8, generator=torch.Generator().manual_seed(3))
    values = {"reference_latents": [image]}
    return {
        name: node_helpers.conditioning_set_values(getattr(world, name), values) for name in ("positive", "negative")
    }


def references_at_zero(world: Any) -> dict[str, Any]:
    """The same by the method that the cache needs, as the prompts' own choice."""
    method = {"reference_latents_method": "index_timestep_zero"}
    return {name: node_helpers.conditioning_set_values(each, method) for name, each in references(world).items()}


def controlled(world: Any) -> dict[str, Any]:
    """Both prompts with a control network of random weights."""
    names = ("out_channels", "transformer_depth_output")
    config = {name: value for name, value in comfy_models.SD15.items() if name not in names}
    network = comfy.cldm.cldm.ControlNet(**config, hint_channels=3, operations=comfy.ops.disable_weight_init)
    comfy_models.fill(network.state_dict(), 7)
    control = comfy.controlnet.ControlNet(network.eval(), load_device=CPU)
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(4))
    apply = host_nodes.ControlNetApplyAdvanced().apply_controlnet
    positive, negative = apply(world.positive, world.negative, control, image, 1.0, 0.0, 1.0)
    return {"positive": positive, "negative": negative}


def boxed(world: Any) -> dict[str, Any]:
    """A positive with a box of GLIGEN, a network of random weights."""
    parts = [comfy.gligen.GatedSelfAttentionDense(320, 768, 8, 40) for _ in range(7)]
    network = comfy.gligen.Gligen(parts, comfy.gligen.PositionNet(768, 768), 768)
    comfy_models.fill(network.state_dict(), 6)
    patcher = comfy.model_patcher.ModelPatcher(network.eval(), CPU, CPU)
    text = torch.randn(1, 768, generator=torch.Generator().manual_seed(5))
    box = ("position", patcher, [(text, 4, 4, 1, 2)])
    return {"positive": node_helpers.conditioning_set_values(world.positive, {"gligen": box})}


def longer(world: Any) -> list[Any]:
    """A positive of a length of its own, so that it has calls of its own."""
    return comfy_models.conditioning(world.kind, 1, length=11)


def hooked(world: Any) -> dict[str, Any]:
    """A positive with Create Hook LoRA: the host patches the weights for its calls alone."""
    from comfy_extras.nodes_hooks import CreateHookLoraModelOnly, SetModelHooksOnCond

    (hooks,) = CreateHookLoraModelOnly().create_hook_model_only(world.files[3], 1.0)
    return {"positive": SetModelHooksOnCond().attach_hook(longer(world), hooks)[0]}


def hooked_reference(world: Any, adapters: Sequence[Any], weights: Sequence[float]) -> Tensor:
    """The blend of copies, of which those for the positive have the hook's LoRA besides."""
    hook = world.adapters[3]
    branches = [[(world.patched.model(*more, each), c) for each, c in zip(adapters, weights, strict=True)]
                for more in ((hook,), ())]  # fmt: skip
    rest = 1 - math.fsum(weights)

    def summed(_: Any, call: dict[str, Any]) -> Tensor:
        (branch,) = call["cond_or_uncond"]
        base = world.patched.model(hook) if branch == 0 else world.patched.model()
        parts = [*branches[branch], (base, rest)]
        return sum(c * predict(model, call) for model, c in parts if abs(c) > 1e-9)

    model = world.model.clone()
    model.set_model_unet_function_wrapper(summed)
    return world.sample(model, positive=longer(world))


def outputs(node: Any, *inputs: Any, **named: Any) -> tuple[Any, ...]:
    """Run a node of the host, of the present kind or of the one before it."""
    if hasattr(node, "define_schema"):
        return node.execute(*inputs, **named).args
    return getattr(node(), node.FUNCTION)(*inputs, **named)


def _custom(world: Any, model: Any, guider: Any, sigmas: Tensor, latent: Any, noise: Any) -> Any:
    from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

    sampler = comfy.samplers.sampler_object("euler")
    return outputs(SamplerCustomAdvanced, noise, guider, sampler, sigmas, latent)[0]


def _sigmas(model: Any, steps: int) -> Tensor:
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)


def in_two_stages(world: Any, model: Any) -> Tensor:
    """Split Sigmas: the second sampler goes on where the first one ends."""
    from comfy_extras.nodes_custom_sampler import CFGGuider, DisableNoise, RandomNoise, SplitSigmas

    high, low = outputs(SplitSigmas, _sigmas(model, 4), 2)
    latent = comfy_models.latent(world.kind, 2)
    for sigmas, noise in ((high, outputs(RandomNoise, 5)[0]), (low, outputs(DisableNoise)[0])):
        guider = outputs(CFGGuider, model, world.positive, world.negative, 4.0)[0]
        latent = _custom(world, model, guider, sigmas, latent, noise)
    return latent["samples"]


def with_two_prompts(style: str) -> Any:
    """Dual CFG: two positives with guidance of their own."""

    def run(world: Any, model: Any) -> Tensor:
        from comfy_extras.nodes_custom_sampler import DualCFGGuider, RandomNoise

        second = comfy_models.conditioning(world.kind, 8)
        guider = outputs(DualCFGGuider, model, world.positive, second, world.negative, 4.0, 3.0, style)[0]
        noise = outputs(RandomNoise, 5)[0]
        return _custom(world, model, guider, _sigmas(model, 3), comfy_models.latent(world.kind, 2), noise)["samples"]

    return run
