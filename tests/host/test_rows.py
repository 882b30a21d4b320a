"""Which row of a layer's input belongs to which image: networks that reorder their rows, and other nodes' patches."""

import contextlib

import comfy.model_management
import comfy_models
import pytest
import torch
from comfy_world import blend_model, difference, preference

WEIGHTS = (0.3, 0.7)


def halves_swapped(network):
    """Swap the halves of the batch inside the network and swap the output back, as Hunyuan3D 2.1 does."""
    forward = network.forward

    def swapped(x, t, context=None, y=None, **kwargs):
        half = x.shape[0] // 2
        out = forward(x.roll(half, 0), t.roll(half, 0), context=context.roll(half, 0), y=y.roll(half, 0), **kwargs)
        return out.roll(-half, 0)

    return network, swapped


def time_major(network):
    """Put the position first and the batch second in a layer, as Cosmos 1 does."""
    part = network.joint_blocks[0].x_block.mlp
    forward = part.forward
    return part, lambda x: forward(x.transpose(0, 1)).transpose(0, 1)


def copies(network):
    """Give a layer the batch twice, one copy after the other, as Qwen-Image-Edit 2511 does."""
    part = network.joint_blocks[0].x_block.mlp
    forward = part.forward
    return part, lambda x: forward(torch.cat([x, x])).chunk(2)[0]


def one_row(network):
    """Give a layer one row for the whole batch, because all rows are the same, as PixArt's kv_linear does."""
    part = network.t_embedder.mlp
    forward = part.forward
    return part, lambda t: forward(t[:1]).expand(len(t), -1)


BREAKS = [halves_swapped, time_major, copies, one_row]


@pytest.fixture(scope="module")
def adapters(worlds, loras_folder):
    """Make two adapters on every layer that one of the `BREAKS` changes."""
    from comfy_adapters import JOINT, kohya, write
    from comfy_world import load_loras

    tensors = [kohya("sd3", seed, endings=(*JOINT, "t_embedder.mlp.0", "t_embedder.mlp.2")) for seed in (21, 22)]
    for number, each in enumerate(tensors):
        write(loras_folder, f"rows-{number}", each)
    return tensors, lambda: load_loras(["rows-0.safetensors", "rows-1.safetensors"])


@contextlib.contextmanager
def broken(world, how):
    """Reorder the rows inside the world's network. Its predictions stay the same."""
    part, forward = how(world.model.model.diffusion_model)
    before = world.sample(world.model, steps=1)
    part.forward = forward
    try:
        assert difference(world.sample(world.model, steps=1), before) < 1e-5
        yield
    finally:
        del part.forward


@pytest.fixture
def counted(sd3):
    """Record the batch sizes of the network's calls."""
    sizes = []
    handle = sd3.model.model.diffusion_model.joint_blocks[1].register_forward_pre_hook(
        lambda _, args: sizes.append(args[0].shape[0])
    )
    yield sizes
    handle.remove()


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "diffusion_blend"]


@pytest.mark.parametrize("how", BREAKS, ids=lambda how: how.__name__)
@pytest.mark.parametrize("evaluation", ["batched", "auto"])
def test_a_batched_blend_is_right_for_every_order_of_the_networks_rows(
    sd3, adapters, monkeypatch, caplog, how, evaluation
):
    """`auto` acts as on a GPU: all rows are in one call while memory allows."""
    caplog.set_level("INFO")
    monkeypatch.setattr(comfy.model_management, "is_device_cpu", lambda _: False)
    tensors, loras = adapters
    latent = comfy_models.latent("sd3", 1)
    reference = sd3.sample(sd3.patched.blended(tensors, WEIGHTS), latent=latent)
    with broken(sd3, how):
        model = blend_model(sd3.model, loras(), preference(*WEIGHTS), evaluation=evaluation)
        assert difference(sd3.sample(model, latent=latent), reference) < 1e-4
    assert sum("one row at a time" in message for message in said(caplog)) == 1


@pytest.mark.parametrize("how", BREAKS, ids=lambda how: how.__name__)
def test_images_with_adapters_of_their_own_are_right_for_every_order_of_the_networks_rows(sd3, adapters, caplog, how):
    caplog.set_level("INFO")
    _, loras = adapters
    longer = comfy_models.conditioning("sd3", 3, length=12)  # so that a call has one row per image

    def run():
        model = blend_model(sd3.model, loras(), preference(1, 1), "stochastic")
        return sd3.sample(model, steps=4, negative=longer)

    apart = run()
    with broken(sd3, how):
        assert difference(run(), apart) < 1e-4
    assert sum("gets a call of its own" in message for message in said(caplog)) == 1


def test_one_comparison_for_a_network_that_is_right(sd3, adapters, counted):
    """The first batched call is compared with one plain row. Later calls and runs of the same shapes are not."""
    _, loras = adapters
    chosen = loras()

    def run(*weights):
        counted.clear()
        sd3.sample(blend_model(sd3.model, chosen, preference(*weights), evaluation="batched"), steps=2)
        return list(counted)

    assert run(*WEIGHTS) == [8, 4, 8]
    assert run(0.6, 0.4) == [8, 8]


def test_gates_without_an_effect_prove_nothing(sd3, loras_folder, counted):
    """Two equal adapters cannot show a mistaken row, so the comparison is repeated a few times."""
    from comfy_world import load_loras

    twice = load_loras([sd3.files[0], sd3.files[0]])
    sd3.sample(blend_model(sd3.model, twice, preference(*WEIGHTS), evaluation="batched"), steps=6)
    assert counted == [8, 4] * 4 + [8, 8]


def test_half_precision_is_not_taken_for_a_mistake(sd3, adapters, caplog, monkeypatch):
    """The rounding of a batch is measured by a batch whose rows have equal gates."""
    caplog.set_level("INFO")
    monkeypatch.setattr(comfy.model_management, "unet_manual_cast", lambda *_, **__: None)
    model = comfy_models.load_tensors(comfy_models.state_dict("sd3"), dtype=torch.bfloat16)
    _, loras = adapters
    sd3.sample(blend_model(model, loras(), preference(*WEIGHTS), evaluation="batched"))
    sd3.sample(blend_model(model, loras(), preference(*WEIGHTS), "stochastic"))
    assert not said(caplog)


def test_other_nodes_patches_get_one_row_a_call(sd15, caplog):
    """Some attention patches expect two rows, the positive and the negative one, as in the host's NAGuidance."""
    caplog.set_level("INFO")

    def guided(q, k, v, extra_options):
        kinds = extra_options["cond_or_uncond"]
        size = q.shape[0] // len(kinds)
        positive, negative = (q[size * kinds.index(kind) :][:size] for kind in (0, 1))
        q = q.clone()
        q[size * kinds.index(0) :][:size] = 2 * positive - negative
        return q, k, v

    model = sd15.model.clone()
    model.set_model_attn2_patch(guided)
    sequential, batched = (
        sd15.sample(blend_model(model, sd15.loras(2), preference(*WEIGHTS), evaluation=evaluation), steps=2)
        for evaluation in ("sequential", "batched")
    )
    assert difference(batched, sequential) < 1e-6
    assert sum("Other nodes patch this model's layers (attn2_patch)" in message for message in said(caplog)) == 1
