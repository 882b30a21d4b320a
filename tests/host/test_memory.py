"""Networks and patches with state between calls: each row has its own state, and the plain model's state does not change."""

import contextlib

import comfy_models
import pytest
import torch
from comfy_adapters import kohya, predict, write
from comfy_world import blend_model, difference, load_loras, preference

WEIGHTS = (0.3, 0.7)


def appended(module, held, x, forward):
    """Store inputs and outputs in a list that is replaced, as HiDream-O1 does."""
    entries = getattr(module, held)
    for known, output in entries:
        if known.shape == x.shape and torch.equal(known, x):
            return output
    output = forward(x)
    setattr(module, held, [*entries, (x.clone(), output)][-2:])
    return output


def filled(module, held, x, forward):
    """Store them in a dict that is filled in place, as the host's Flux KV cache does."""
    entries = getattr(module, held)
    key = (tuple(x.shape), float(x.double().sum()))
    if key not in entries:
        entries[key] = {"output": forward(x), "used": 0}
    entries[key]["used"] += 1
    return entries[key]["output"]


KINDS = {"appended": (appended, list), "filled": (filled, dict)}


@pytest.fixture(scope="module")
def adapters(loras_folder):
    """Make two adapters on the time embedder and other layers."""
    tensors = [kohya("sd3", seed, endings=("t_embedder.mlp.0", "mlp.fc1", "attn.qkv")) for seed in (31, 32)]
    for number, each in enumerate(tensors):
        write(loras_folder, f"memory-{number}", each)
    return tensors


@contextlib.contextmanager
def remembering(network, kind, held):
    """Cache the time embedding by the noise level, which assumes that its layers never change."""
    embedder = network.t_embedder
    inner = embedder.mlp.forward
    owner = embedder
    how, empty = KINDS[kind]
    setattr(owner, held, empty())
    embedder.mlp.forward = lambda x: how(owner, held, x, inner)
    try:
        yield owner
    finally:
        del embedder.mlp.forward
        delattr(owner, held)


CASES = [("appended", "_kv_cache_entries"), ("filled", "cache"), ("filled", "memory")]


@pytest.mark.parametrize(("kind", "held"), CASES)
@pytest.mark.parametrize("evaluation", ["sequential", "batched"])
def test_a_blend_of_a_network_with_a_cache(sd3, adapters, kind, held, evaluation):
    """The plain model has run before with the same prompt and noise levels, so the cache has entries for its weights."""
    network = sd3.model.model.diffusion_model
    reference = sd3.sample(sd3.patched.blended(adapters, WEIGHTS))
    loras = load_loras(["memory-0.safetensors", "memory-1.safetensors"])
    plain = sd3.sample(sd3.model)
    with remembering(network, kind, held) as owner:
        if "cache" in held:
            assert torch.equal(sd3.sample(sd3.model), plain)
            entries = list(getattr(owner, held))
            assert entries
        blended = sd3.sample(blend_model(sd3.model, loras, preference(*WEIGHTS), evaluation=evaluation))
        assert difference(blended, reference) < 1e-4
        if "cache" in held:
            assert all(one is other for one, other in zip(entries, getattr(owner, held), strict=True))
        assert torch.equal(sd3.sample(sd3.model), plain)


def test_each_row_goes_on_with_its_own(sd3, adapters):
    """A row's second call at the same noise level uses the cache and does not compute the embedding again."""
    network = sd3.model.model.diffusion_model
    computed = []
    handle = network.t_embedder.mlp[0].register_forward_hook(lambda *_: computed.append(1))
    loras = load_loras(["memory-0.safetensors", "memory-1.safetensors"])
    longer = comfy_models.conditioning("sd3", 3, length=12)  # the negative has a call of its own
    try:
        with remembering(network, "appended", "_kv_cache_entries"):
            sd3.sample(blend_model(sd3.model, loras, preference(*WEIGHTS)), negative=longer, steps=3)
    finally:
        handle.remove()
    assert len(computed) == 3 * 2


def test_a_fault_in_a_call_leaves_the_cache_as_it_was(sd3, adapters):
    network = sd3.model.model.diffusion_model

    def fail(*_):
        raise RuntimeError("injected")

    loras = load_loras(["memory-0.safetensors", "memory-1.safetensors"])
    with remembering(network, "filled", "cache") as owner:
        sd3.sample(sd3.model)
        before = {key: dict(entry) for key, entry in owner.cache.items()}
        handle = network.final_layer.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="injected"):
            sd3.sample(blend_model(sd3.model, loras, preference(*WEIGHTS)))
        handle.remove()
        assert owner.cache == before


def test_a_patch_with_a_cache(sd15):
    """An attention patch stores the keys and values of its first call, as the host's Flux KV cache does."""

    class FirstKeys:
        def __init__(self):
            self.cache = {}

        def __call__(self, q, k, v, extra_options):
            place = (*extra_options["block"], extra_options["block_index"], tuple(k.shape))
            first = self.cache.setdefault(place, (k.clone(), v.clone()))
            return q, *first

    def with_cache(model):
        patch = FirstKeys()
        model = model.clone()
        model.set_model_attn2_patch(patch)
        return model, patch

    model, patch = with_cache(sd15.model)
    blended = sd15.sample(blend_model(model, sd15.loras(2), preference(*WEIGHTS)), steps=2)
    assert not patch.cache

    copies = [with_cache(sd15.patched.model(tensors))[0] for tensors in sd15.adapters[:2]]

    def summed(_, call):
        total = 0
        for copy, weight in zip(copies, WEIGHTS, strict=True):
            options = copy.model_options["transformer_options"] | {
                name: value for name, value in call["c"]["transformer_options"].items() if name != "patches"
            }
            total = total + weight * predict(copy, {**call, "c": {**call["c"], "transformer_options": options}})
        return total

    reference = sd15.model.clone()
    reference.set_model_unet_function_wrapper(summed)
    assert difference(blended, sd15.sample(reference, steps=2)) < 1e-4
