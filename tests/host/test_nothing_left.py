"""After errors, interrupts and new preferences the host is as it was, by its own counters and bit for bit."""

import comfy_models
import pytest
import torch
from comfy_adapters import hooks_on
from comfy_world import blend_model, difference, preference
from diffusion_blend.nodes.adapters import files as lora_files
from diffusion_blend.nodes.samplers import BlendedKSampler, MSDDASampler


class Fault(Exception):
    pass


def network(model):
    return model.model.diffusion_model


def fail_at(model, call, error):
    """Make the network raise at its n-th call; returns a handle that ends this."""
    count = [0]

    def hook(*_):
        count[0] += 1
        if count[0] == call:
            raise error

    return network(model).register_forward_hook(hook)


@pytest.mark.parametrize("method", ["blend", "stochastic", "soup"])
@pytest.mark.parametrize("call", range(1, 7))
def test_an_error_at_any_call_leaves_nothing(sd3, method, call):
    before = sd3.sample(sd3.model)
    blended = blend_model(sd3.model, sd3.loras(2), preference(0.5, 0.5), method)
    handle = fail_at(sd3.model, call if method == "blend" else (call + 1) // 2, Fault())
    with pytest.raises(Fault):
        sd3.sample(blended)
    handle.remove()
    assert hooks_on(sd3.model) == 0
    assert torch.equal(sd3.sample(sd3.model), before)


@pytest.mark.parametrize("evaluation", ["sequential", "batched"])
@pytest.mark.parametrize("step", range(3))
def test_an_interrupt_at_any_step_stops_and_leaves_nothing(sd3, evaluation, step):
    """The host's own interrupt: a BaseException in later versions."""
    import comfy.model_management as management
    import comfy.sample

    before = sd3.sample(sd3.model)
    blended = blend_model(sd3.model, sd3.loras(2), preference(0.5, 0.5), evaluation=evaluation)
    run = sd3.sampling()
    latent = run["latent"]["samples"]

    def interrupt(index, *_):
        if index == step:
            management.interrupt_current_processing(True)

    arguments = (3, 4.0, "heun", "normal", run["positive"], run["negative"], latent)
    with pytest.raises(management.InterruptProcessingException):
        comfy.sample.sample(blended, comfy.sample.prepare_noise(latent, 5), *arguments, callback=interrupt, seed=5)
        management.throw_exception_if_processing_interrupted()  # after the last step there is no further call
    assert not management.processing_interrupted()
    assert hooks_on(sd3.model) == 0
    assert torch.equal(sd3.sample(sd3.model), before)


def test_an_interrupt_between_the_rows_of_one_step_is_noticed(sd3):
    import comfy.model_management as management

    calls = []

    def hook(*_):
        calls.append(1)
        management.interrupt_current_processing(True)

    handle = network(sd3.model).register_forward_hook(hook)
    with pytest.raises(management.InterruptProcessingException):
        sd3.sample(blend_model(sd3.model, sd3.loras(3), preference(1, 1, 1)))
    handle.remove()
    assert len(calls) == 1
    assert hooks_on(sd3.model) == 0


def _counts(name, args, kwargs):
    """When a clone takes over, the host visits every weight and changes none. Such a visit is no event."""
    if name == "patch_weight_to_device":
        return args[1] in args[0].patches
    if name == "unpatch_model":
        return kwargs.get("unpatch_weights", args[2] if len(args) > 2 else True)
    return True


class Counters:
    """The host's own figures of loading, patching and reading."""

    def __init__(self, model, monkeypatch):
        import comfy.model_patcher
        import comfy.utils

        self.model, self.events = model, []
        for owner, name in (
            (comfy.model_patcher.ModelPatcher, "patch_weight_to_device"),
            (comfy.model_patcher.ModelPatcher, "unpatch_model"),
            (comfy.utils, "load_torch_file"),
            (lora_files, "_read_tensors"),
            (comfy.utils, "set_attr_param"),
        ):
            original = getattr(owner, name)

            def spy(*args, _original=original, _name=name, **kwargs):
                if _counts(_name, args, kwargs):
                    self.events.append(_name)
                return _original(*args, **kwargs)

            monkeypatch.setattr(owner, name, spy)

    def state(self):
        model = self.model.model
        return (
            model.current_weight_patches_uuid,
            model.model_loaded_weight_memory,
            model.lowvram_patch_counter,
            [parameter.data_ptr() for parameter in model.parameters()],
        )


def test_new_weights_reload_and_repatch_nothing(world, monkeypatch):
    loras = world.loras(3)
    world.sample(blend_model(world.model, loras, preference(1, 1, 1)))
    counters = Counters(world.model, monkeypatch)
    before = counters.state()
    for weights, kl_scale, method in (
        ((1, 0, 0), 1.0, "blend"),
        ((1, 2, 3), 0.7, "soup"),
        ((3, 2, 1), 0.5, "stochastic"),
    ):
        world.sample(blend_model(world.model, loras, preference(*weights, kl_scale=kl_scale), method), steps=1)
        world.sample(world.model, steps=1)
    assert counters.events == []
    assert counters.state() == before


def test_the_counters_do_count(sd15, monkeypatch):
    import nodes as host_nodes

    sd15.sample(sd15.model, steps=1)
    counters = Counters(sd15.model, monkeypatch)
    before = counters.state()
    (loaded,) = host_nodes.LoraLoaderModelOnly().load_lora_model_only(sd15.model, sd15.files[0], 1.0)
    sd15.sample(loaded, steps=1)
    sd15.loras(1)
    assert {"load_torch_file", "patch_weight_to_device", "_read_tensors"} <= set(counters.events)
    assert counters.state() != before
    sd15.sample(sd15.model, steps=1)


def test_the_adapters_count_in_the_hosts_memory_accounting(sd15):
    import comfy.model_management as management

    loras = sd15.loras(2)
    blended = blend_model(sd15.model, loras, preference(0.5, 0.5))
    (bank,) = blended.get_additional_models_with_key("diffusion_blend")
    size = sum(
        tensor.numel() * 4 for tensors in sd15.adapters[:2] for key, tensor in tensors.items() if "alpha" not in key
    )
    assert bank.model_size() == size
    sd15.sample(blended, steps=1)
    assert any(
        loaded.model is not None and loaded.model.model is bank.model for loaded in management.current_loaded_models
    )
    outside = {id(parameter) for parameter in sd15.model.model.parameters()}
    assert not outside & {id(parameter) for parameter in bank.model.parameters()}


def test_progress_previews_and_results_come_as_in_ksampler(sd3, monkeypatch):
    """The host's callback sees the same steps, totals and shapes."""
    import latent_preview

    seen = []

    def prepare_callback(model, steps, *_):
        return lambda step, x0, x, total: seen.append((step, total, tuple(x0.shape), tuple(x.shape)))

    monkeypatch.setattr(latent_preview, "prepare_callback", prepare_callback)
    sd3.sample(sd3.model)
    plain = seen.copy()
    seen.clear()
    sd3.sample(blend_model(sd3.model, sd3.loras(2), preference(0.5, 0.5)))
    assert seen == plain
    seen.clear()
    inputs = sd3.node_sampling()
    inputs.pop("sampler_name")
    etas = {f"eta_{i}": 1.0 for i in range(1, 5)}
    MSDDASampler.execute(sd3.model, sd3.loras(2), preference(0.5, 0.5), **etas, renormalise=False, **inputs)
    assert seen == plain


def test_out_of_memory_falls_back_row_by_row(sd3):
    """The network is made to refuse more than one row of the plan at a time."""
    batches = []

    def refuse(_, args):
        batches.append(args[0].shape[0])
        if args[0].shape[0] > 4:
            raise torch.cuda.OutOfMemoryError("injected")

    handle = network(sd3.model).register_forward_pre_hook(refuse)
    wanted = preference(1, 1, 1)
    batched = sd3.sample(blend_model(sd3.model, sd3.loras(3), wanted, evaluation="batched"))
    handle.remove()
    assert batches[:2] == [12, 4]
    assert set(batches[1:]) == {4}
    assert difference(batched, sd3.sample(blend_model(sd3.model, sd3.loras(3), wanted))) < 1e-5


def test_too_little_free_memory_is_not_even_tried(sd3, monkeypatch):
    batches = []
    handle = network(sd3.model).register_forward_pre_hook(lambda _, args: batches.append(args[0].shape[0]))
    need = sd3.model.model.memory_required([8, 16, 8, 8]) * 1.5
    monkeypatch.setattr("diffusion_blend.nodes.engine.rows.free_memory", lambda *_: need + 1)
    sd3.sample(blend_model(sd3.model, sd3.loras(3), preference(1, 1, 1), evaluation="batched"), steps=1)
    handle.remove()
    assert max(batches) <= 8


def test_a_network_that_mixes_images_in_a_row_falls_back_to_one_row_a_call(sd3):
    """A layer is made to lose the batch of its input."""
    from diffusion_blend.blending.exchange import RowsDoNotFit

    def refuse(_, args):
        if args[0].shape[0] > 4:
            raise RowsDoNotFit("injected")

    handle = network(sd3.model).register_forward_pre_hook(refuse)
    wanted = preference(1, 1)
    batched = sd3.sample(blend_model(sd3.model, sd3.loras(2), wanted, evaluation="batched"))
    handle.remove()
    assert difference(batched, sd3.sample(blend_model(sd3.model, sd3.loras(2), wanted))) < 1e-5


def test_auto_on_a_cpu_is_sequential_bit_for_bit(sd3):
    wanted = preference(0.4, 0.6)
    auto, sequential = (
        sd3.sample(blend_model(sd3.model, sd3.loras(2), wanted, evaluation=evaluation))
        for evaluation in ("auto", "sequential")
    )
    assert torch.equal(auto, sequential)


def test_a_layer_that_is_passed_by_is_refused_and_an_unused_part_is_named_once(sd3, loras_folder, caplog):
    from comfy_adapters import write
    from comfy_world import load_loras

    write(loras_folder, "idle", {k: v for k, v in sd3.adapters[0].items() if "x_block_mlp_fc1" in k})
    blended = blend_model(sd3.model, load_loras(["idle.safetensors"]), preference(1.0))
    block = network(sd3.model).joint_blocks[0].x_block

    # A network that computes a layer without calling it stands for a fused kernel.
    block.mlp.forward = lambda x: x @ block.mlp.fc1.weight.T @ block.mlp.fc2.weight.T
    try:
        with pytest.raises(RuntimeError, match=r"1 of the adapters' layers|1 .*joint_blocks.0.x_block.mlp.fc1"):
            sd3.sample(blended)
    finally:
        del block.mlp.forward
    assert not [r for r in caplog.records if r.name == "diffusion_blend"]
    # A layer that the network has but does not use is no fault: ACE-Step has some in every block.
    block.mlp.forward = lambda x: x
    try:
        sd3.sample(blended)
    finally:
        del block.mlp.forward
    (record,) = [r for r in caplog.records if r.name == "diffusion_blend"]
    assert "1 of the adapters' layers were not called" in record.getMessage()
    caplog.clear()
    # A part that this run does not use is no fault.
    mlp = block.mlp
    call = type(mlp).__call__
    try:
        type(mlp).__call__ = lambda self, x: x if self is mlp else call(self, x)
        sd3.sample(blended)
    finally:
        del type(mlp).__call__
    warnings = [r.getMessage() for r in caplog.records if r.name == "diffusion_blend"]
    assert len(warnings) == 1
    assert warnings[0].startswith("1 of") and "diffusion_model.joint_blocks.0.x_block.mlp.fc1" in warnings[0]


def test_the_latent_input_is_not_changed(sd3):
    latent = comfy_models.latent("sd3", 2)
    before = latent["samples"].clone()
    BlendedKSampler.execute(sd3.model, sd3.loras(1), preference(1.0), **sd3.node_sampling(latent=latent))
    assert torch.equal(latent["samples"], before)
    assert set(latent) == {"samples"}
