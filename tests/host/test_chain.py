"""Adapters made of other packs' loaders: a chain of LoRA nodes on a MODEL, and a LORA_STACK."""

import asyncio
import copy
from types import SimpleNamespace

import comfy.lora
import comfy.sd
import comfy_adapters
import comfy_models
import execution
import nodes as host_nodes
import pytest
import torch
from adapter_makers import KERNEL, LINEAR, boft, difference_of, dora, glora, loha, lokr, lora, oft, put, random
from comfy_adapters import write
from comfy_execution.graph import DynamicPrompt
from comfy_world import blend_model, difference, preference
from dense_updates import assert_same, changes
from diffusion_blend.nodes.adapters.base_weights import BaseWeights
from diffusion_blend.nodes.adapters.chain import adapter_of_chain
from diffusion_blend.nodes.adapters.fitting import fit_adapter
from diffusion_blend.nodes.engine import server
from diffusion_blend.nodes.from_model import RewardLoRAFromModel, RewardLoRAsFromStack

NORM = "input_blocks.1.0.in_layers.0"
KINDS = {
    "LoRA": lora(LINEAR) | lora(KERNEL),
    "LoHa": loha(LINEAR),
    "LoKr": lokr(LINEAR, "whole", "whole"),
    "DoRA": dora(LINEAR, 0),
    "GLoRA": glora(LINEAR),
    "OFT": oft(LINEAR),
    "BOFT": boft(LINEAR, alpha=random(1)[0].abs()),
    "differences": difference_of(LINEAR) | put(NORM, w_norm=random(320), b_norm=random(320)),
    "weights that replace": put(LINEAR, set_weight=random(320, 768)),
    "other shapes": put(LINEAR, set_weight=random(768))
    | put(NORM, lora_up__weight=random(320, 2) / 5, lora_down__weight=random(2, 1)),
}


def after(model, *files):
    """Return the MODEL after the host's Load LoRA nodes, each at strength 0.8."""
    for tensors in files:
        model, _ = comfy.sd.load_lora_for_models(model, None, dict(tensors), 0.8, 0)
    return model


@pytest.mark.parametrize("first", KINDS)
def test_a_chain_of_two_kinds_is_the_hosts_patching_of_both(first):
    plain = after(comfy_models.load("sd15"), lora(LINEAR, rank=2))  # a LoRA that belongs to the base
    chained = after(plain, KINDS[first], lora(LINEAR, rank=3))
    adapter = adapter_of_chain(plain, chained, "two of them")
    weights = BaseWeights(plain)
    updates, report = fit_adapter(adapter, plain.model, {}, weights)
    assert not report.text() or "Its updates (" in report.text()
    hosts = {}
    for key, entries in chained.patches.items():
        base = weights.read(key)
        unpatched = plain.model.state_dict()[key].float()
        hosts[key] = comfy.lora.calculate_weight(entries, unpatched.clone(), key) - base
    hosts = {key: change for key, change in hosts.items() if change.any()}
    assert_same(changes_on(plain, updates), hosts)


def changes_on(plain, updates):
    """Return the changes of a MODEL with patches: those of its network with the patched weights in place."""
    weights = BaseWeights(plain)
    network = comfy_models.load("sd15").model
    state = {key: weights.read(key) for key in plain.patches}
    before = {key: network.state_dict()[key].clone() for key in state}
    try:
        network.load_state_dict(state, strict=False)
        return changes(network, updates)
    finally:
        network.load_state_dict(before, strict=False)


def test_a_patch_of_a_chain_that_the_host_leaves_out_does_not_take_others_along(sd15):
    key = f"diffusion_model.{LINEAR}.weight"
    chained = after(comfy_models.load("sd15"), lora(LINEAR))
    chained.add_patches({key: ("diff", (random(3, 768),))}, 1.0)
    adapter = adapter_of_chain(comfy_models.load("sd15"), chained, "two of them")
    updates, _ = fit_adapter(adapter, chained.model, {}, BaseWeights(comfy_models.load("sd15")))
    own = chained.model.state_dict()[key].float()
    expected = comfy.lora.calculate_weight(chained.patches[key], own.clone(), key) - own
    assert_same(changes(chained.model, updates), {key: expected})


def test_two_chains_blend_as_copies_that_the_host_patched(sd15):
    loras = None
    for number, tensors in enumerate(sd15.adapters):
        node = RewardLoRAFromModel.execute(sd15.model, after(sd15.model, tensors), f"chain {number}", loras)
        loras = node.result[0]
    assert loras.names == [f"chain {i}" for i in range(len(sd15.adapters))]
    weights = [0.3, 0.7, *[0.0] * (len(loras.names) - 2)]
    blended = blend_model(sd15.model, loras, preference(*weights, kl_scale=0.8))
    halves = [{key: t * 0.8 if "lora_up" in key else t for key, t in file.items()} for file in sd15.adapters[:2]]
    expected = sd15.sample(comfy_adapters.Patched("sd15").blended(halves, [0.24, 0.56]))
    assert difference(sd15.sample(blended), expected) < 1e-4
    assert difference(sd15.sample(sd15.model), expected) > 1e-3


def test_a_stack_of_files_is_one_adapter_a_file(sd3, loras_folder):
    for number, tensors in enumerate(sd3.adapters[:2]):
        write(loras_folder, f"stacked-{number}", tensors)
    stack = [("stacked-0.safetensors", 0.5, 1.0), ("None", 1.0, 1.0), ("stacked-1.safetensors", -1, 0)]
    loras = RewardLoRAsFromStack.execute(stack).result[0]
    assert [(adapter.name, adapter.strength) for adapter in loras] == [("stacked-0", 0.5), ("stacked-1", -1.0)]
    assert [adapter.record.get("strength_clip") for adapter in loras] == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"strength of stacked-0.safetensors is nan"):
        RewardLoRAsFromStack.execute([("stacked-0.safetensors", 1.0, float("nan"))])
    with pytest.raises(ValueError, match="holds no LoRA"):
        RewardLoRAsFromStack.execute([("None", 1.0, 1.0)])


def hosts_fingerprint(prompt):
    """What the host's own cache sees of the node "2". The host gives this check no linked input."""
    return asyncio.run(execution.IsChangedCache("a prompt", DynamicPrompt(copy.deepcopy(prompt)), None).get("2"))


def test_a_file_of_a_stack_that_was_trained_on_is_read_again(folder, monkeypatch):
    monkeypatch.setitem(host_nodes.NODE_CLASS_MAPPINGS, "RewardLoRAsFromStack", RewardLoRAsFromStack)
    prompt = {
        "1": {"class_type": "LoRA Stacker", "inputs": {"loras": "<lora:stack-own:0.8>"}},
        "2": {"class_type": "RewardLoRAsFromStack", "inputs": {"lora_stack": ["1", 0]}},
    }
    for name in ("stack-own", "stack-other"):
        write(folder, name, lora(LINEAR))

    def changes_with(name, rank):
        before = hosts_fingerprint(prompt)
        assert hosts_fingerprint(prompt) == before and str(folder) not in str(before)
        write(folder, name, lora(LINEAR, rank))
        return hosts_fingerprint(prompt) != before

    assert changes_with("stack-own", 5) and changes_with("stack-other", 5)  # without a server every file counts
    running = SimpleNamespace(queue_updated=lambda: None)
    running.prompt_queue = execution.PromptQueue(running)
    monkeypatch.setattr(server, "running_server", lambda: running)
    running.prompt_queue.put((0, "a prompt", prompt, {}, []))
    running.prompt_queue.get()
    assert changes_with("stack-own", 6) and not changes_with("stack-other", 6)


def test_what_is_no_chain_is_refused_in_words(sd15, sd3):
    with pytest.raises(ValueError, match="different checkpoints"):
        adapter_of_chain(sd15.model, sd3.model, "a")
    with pytest.raises(ValueError, match="changes no weight"):
        adapter_of_chain(sd15.model, sd15.model.clone(), "a")
    with pytest.raises(ValueError, match="from which the chain starts"):
        adapter_of_chain(after(sd15.model, lora(LINEAR)), after(sd15.model, lora(LINEAR, rank=2)), "a")
    with pytest.raises(ValueError, match="from which the chain starts"):
        adapter_of_chain(after(sd15.model, lora(LINEAR)), after(sd15.model, lora(KERNEL)), "a")


def test_a_bypass_lora_in_the_chain_is_refused_by_name(sd15):
    if not hasattr(comfy.sd, "load_bypass_lora_for_models"):
        pytest.skip("this host has no bypass LoRA")

    def bypassed(model):
        return comfy.sd.load_bypass_lora_for_models(model, None, dict(lora(LINEAR)), 0.8, 0)[0]

    plain = after(sd15.model, lora(KERNEL))
    for chained in (
        bypassed(plain),
        after(bypassed(plain), lora(KERNEL, rank=2)),
        bypassed(after(plain, lora(LINEAR))),
    ):
        with pytest.raises(ValueError, match=r"LoRAs in bypass mode.*Load LoRA in place of Load LoRA \(Bypass\)"):
            adapter_of_chain(plain, chained, "a")
    base = bypassed(plain)
    assert adapter_of_chain(base, after(base, lora(LINEAR)), "a").patches  # the bypass LoRA belongs to the base


def test_weights_that_a_chain_changes_by_hooks_or_functions_are_refused(sd15):
    from comfy_extras import nodes_hooks

    hooked, wrapped = after(sd15.model, lora(KERNEL)), after(sd15.model, lora(KERNEL))
    hooks = nodes_hooks.comfy.hooks.create_hook_lora(dict(lora(LINEAR)), 1.0, 1.0)
    target = nodes_hooks.comfy.hooks.create_target_dict(nodes_hooks.comfy.hooks.EnumWeightTarget.Model)
    hooked.register_all_hook_patches(hooks, target, hooked.model_options)
    with pytest.raises(ValueError, match="hook LoRAs"):
        adapter_of_chain(sd15.model, hooked, "a")
    wrapped.add_weight_wrapper(f"diffusion_model.{LINEAR}.weight", torch.neg)
    with pytest.raises(ValueError, match="functions on weights"):
        adapter_of_chain(sd15.model, wrapped, "a")


def test_other_changes_of_a_chain_are_said(sd15, caplog):
    from comfy_extras import nodes_freelunch, nodes_model_advanced

    caplog.set_level("INFO", logger="diffusion_blend")
    chained = after(sd15.model, lora(LINEAR))
    assert adapter_of_chain(sd15.model, chained, "a").patches
    assert "Only the LoRAs become the adapter" not in caplog.text
    free = nodes_freelunch.FreeU_V2
    (freed,) = (
        free.execute(chained, 1.3, 1.4, 0.9, 0.2).args
        if hasattr(free, "execute")
        else free().patch(chained, 1.3, 1.4, 0.9, 0.2)
    )
    adapter_of_chain(sd15.model, freed, "a")
    assert "also change the options (FreeU" in caplog.text
    (other,) = nodes_model_advanced.ModelSamplingDiscrete().patch(chained, "v_prediction", False)
    adapter_of_chain(sd15.model, other, "a")
    assert "also change the objects (ModelSampling" in caplog.text
