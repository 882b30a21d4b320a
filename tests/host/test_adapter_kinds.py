"""Every kind of adapter the host's reader knows: blended exactly as the host patches it, or refused by name."""

import math
import re

import comfy_adapters
import comfy_models
import pytest
import torch
from comfy_adapters import host_changes, low_rank, write
from comfy_world import blend_model, difference, load_loras, preference
from diffusion_blend.nodes.adapters.files import RewardLoRA
from diffusion_blend.nodes.adapters.fitting import low_rank_updates

LINEAR = "input_blocks.1.1.transformer_blocks.0.attn2.to_k"  # 320 x 768
KERNEL = "input_blocks.1.0.in_layers.2"  # 320 x 320 x 3 x 3
POINT = "input_blocks.1.1.proj_in"  # 320 x 320 x 1 x 1
ALPHA = 3.0


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + math.prod(shape)))


def shape_of(layer, kind="sd15"):
    return comfy_models.state_dict(kind)[f"{layer}.weight"].shape


def kohya_key(layer):
    return "lora_unet_" + layer.replace(".", "_")


def put(layer, **factors):
    """Return kohya keys for one layer. Two underscores in a name mean a dot."""
    return {f"{kohya_key(layer)}.{name.replace('__', '.')}": tensor for name, tensor in factors.items()}


def lora(layer, rank=4, alpha=ALPHA):
    up, down = low_rank(shape_of(layer), rank, torch.Generator().manual_seed(rank))
    return put(layer, lora_up__weight=up, lora_down__weight=down, alpha=torch.tensor(alpha))


def locon_tucker(layer, rank=4):
    rows, columns, *kernel = shape_of(layer)
    return put(
        layer,
        lora_up__weight=random(rows, rank, 1, 1),
        lora_mid__weight=random(rank, rank, *kernel),
        lora_down__weight=random(rank, columns, 1, 1) / 10,
        alpha=torch.tensor(ALPHA),
    )


def loha(layer, ranks=(3, 5), **more):
    """Make LyCORIS' LoHa, in which a convolution's kernel belongs to the columns."""
    rows, columns = shape_of(layer)[0], shape_of(layer)[1:].numel()
    factors = {}
    for number, rank in enumerate(ranks, 1):
        factors[f"hada_w{number}_a"] = random(rows, rank, seed=number)
        factors[f"hada_w{number}_b"] = random(rank, columns, seed=number) / 10
    return put(layer, **factors, alpha=torch.tensor(ALPHA), **more)


def loha_tucker(layer, rank=3):
    rows, columns, *kernel = shape_of(layer)
    factors = {}
    for number in (1, 2):
        factors[f"hada_w{number}_a"] = random(rank, rows, seed=number)
        factors[f"hada_w{number}_b"] = random(rank, columns, seed=number) / 10
        factors[f"hada_t{number}"] = random(rank, rank, *kernel, seed=number)
    return put(layer, **factors, alpha=torch.tensor(ALPHA))


def lokr(layer, first, second, alpha=ALPHA):
    """Make LyCORIS' LoKr: an 8 x 16 matrix times a matrix that fills the layer. Each is "whole", "factored" or "tucker"."""
    rows, columns, *kernel = shape_of(layer)
    rest = (rows // 8, columns // 16)
    factors = (
        {"lokr_w1": random(8, 16)} if first == "whole" else {"lokr_w1_a": random(8, 2), "lokr_w1_b": random(2, 16)}
    )
    if second == "whole":
        factors["lokr_w2"] = random(*rest, *kernel) / 10
    elif second == "factored":
        factors |= {"lokr_w2_a": random(rest[0], 3), "lokr_w2_b": random(3, rest[1] * math.prod(kernel)) / 10}
    else:
        factors |= {"lokr_w2_a": random(3, rest[0]), "lokr_w2_b": random(3, rest[1]), "lokr_t2": random(3, 3, *kernel)}
    return put(layer, **factors, alpha=torch.tensor(alpha))


def lokr_of_a_column(layer):
    """Make a LoKr whose whole factors have smaller sides 1 and 40, so that it is of low rank."""
    rows, columns = shape_of(layer)
    return put(layer, lokr_w1=random(rows // 40, 1), lokr_w2=random(40, columns) / 10)


def rs_lora(layer, rank=9, alpha=ALPHA):
    """LyCORIS scales by alpha / sqrt(rank). It writes alpha * sqrt(rank), so that alpha / rank is that scale."""
    return lora(layer, rank, alpha * math.sqrt(rank))


def slices_of(make):
    """Return SimpleTuner's LyCORIS keys for SD3's separate to_q and to_v, which are slices of the host's fused qkv."""
    tensors = {}
    for number, part in enumerate(("to_q", "to_v")):
        for name, tensor in make(number).items():
            tensors[f"lycoris_transformer_blocks_0_attn_{part}.{name}"] = tensor
    return tensors


def loha_128(seed):
    pairs = {
        f"hada_w{i}_{s}": random(*((128, 3) if s == "a" else (3, 128)), seed=seed + i) for i in (1, 2) for s in "ab"
    }
    return {name: tensor / 3 for name, tensor in pairs.items()} | {"alpha": torch.tensor(1.5)}


def lokr_128(seed):
    return {
        "lokr_w1": random(4, 4, seed=seed) / 2,
        "lokr_w2_a": random(32, 2, seed=seed),
        "lokr_w2_b": random(2, 32, seed=seed) / 6,
        "alpha": torch.tensor(2.0),
    }


# Kind -> (checkpoint, file, largest rank of a layer).
APPLIED = {
    "LoRA": ("sd15", lora(LINEAR), 4),
    "LoCon": ("sd15", lora(KERNEL) | lora(POINT), 4),
    "LoCon with a Tucker core": ("sd15", locon_tucker(KERNEL), 4),
    "rs-LoRA": ("sd15", rs_lora(LINEAR), 9),
    "LoHa": ("sd15", loha(LINEAR) | loha(KERNEL) | loha(POINT), 15),
    "LoHa with a Tucker core": ("sd15", loha_tucker(KERNEL), 9),
    "LoKr, the first whole": ("sd15", lokr(LINEAR, "whole", "factored") | lokr(KERNEL, "whole", "factored"), 24),
    "LoKr, both factored": ("sd15", lokr(LINEAR, "factored", "factored") | lokr(KERNEL, "factored", "factored"), 6),
    "LoKr, the second whole": ("sd15", lokr(LINEAR, "factored", "whole") | lokr(KERNEL, "factored", "whole"), 80),
    "LoKr, both whole": ("sd15", lokr_of_a_column(LINEAR), 40),
    "LoHa on slices of a fused qkv": ("sd3", slices_of(loha_128), 18),
    "LoKr on slices of a fused qkv": ("sd3", slices_of(lokr_128), 16),
}


def adapter_network_and_keys(kind, tensors, strength=0.7):
    import comfy.lora

    network = comfy_models.load(kind).model
    key_map = comfy.lora.model_lora_keys_unet(network, {})
    return RewardLoRA("a", "a.safetensors", tensors, None, strength), network, key_map


def fitted(kind, tensors, strength=0.7):
    adapter, network, key_map = adapter_network_and_keys(kind, tensors, strength)
    return low_rank_updates(adapter, network, key_map), host_changes(network, key_map, tensors, strength)


@pytest.mark.parametrize("name", APPLIED)
def test_each_kind_is_the_change_that_the_host_makes(name):
    kind, tensors, rank = APPLIED[name]
    updates, expected = fitted(kind, tensors)
    assert {f"{layer}.weight" for layer in updates} == set(expected)
    for layer, pairs in updates.items():
        wanted = expected[f"{layer}.weight"]
        change = sum(pair.up @ pair.down.flatten(1) for pair in pairs).reshape(wanted.shape)
        assert wanted.abs().max() > 1e-3
        assert difference(change, wanted) < 1e-5
    assert max(sum(pair.up.shape[1] for pair in pairs) for pairs in updates.values()) == rank


def test_rs_lora_is_scaled_by_the_root_of_its_rank():
    updates, _ = fitted("sd15", rs_lora(LINEAR), strength=1.0)
    up, down = low_rank(shape_of(LINEAR), 9, torch.Generator().manual_seed(9))
    ((pair,),) = updates.values()
    assert difference(pair.up @ pair.down, ALPHA / math.sqrt(9) * up @ down) < 1e-6


def test_images_are_those_of_the_hosts_patched_copy(sd3, loras_folder):
    tensors = {
        key.replace("blocks_0", f"blocks_{block}"): tensor
        for block, make in enumerate((loha_128, lokr_128))
        for key, tensor in slices_of(make).items()
    }
    write(loras_folder, "kinds", tensors)
    blended = blend_model(sd3.model, load_loras(["kinds.safetensors"]), preference(1.0))
    expected = sd3.sample(comfy_adapters.Patched("sd3").model(tensors), steps=2)
    assert difference(sd3.sample(blended, steps=2), expected) < 1e-5
    assert difference(sd3.sample(sd3.model, steps=2), expected) > 1e-3


def glora(layer, rank=4):
    rows, columns = shape_of(layer)
    shapes = {"a1": (columns, rank), "a2": (rank, columns), "b1": (rows, rank), "b2": (rank, columns)}
    return put(layer, **{f"{name}__weight": random(*shape) for name, shape in shapes.items()})


DORA = {"dora_scale": torch.ones(320, 1)}
# Kind -> (file, the host's name of the kind, the part of the message besides file, layer and advice).
REFUSED = {
    "DoRA": (lora(LINEAR) | put(LINEAR, **DORA), "lora", "this is a DoRA, which needs the model's own weights"),
    "DoRA of a LoHa": (loha(LINEAR, **DORA), "loha", "this is a DoRA"),
    "DoRA of a LoKr": (lokr(LINEAR, "whole", "factored") | put(LINEAR, **DORA), "lokr", "this is a DoRA"),
    "LoKr with a Tucker core": (
        lokr(KERNEL, "whole", "tucker"),
        "lokr",
        "this is a LoKr with a Tucker core, which the host itself does not apply",
    ),
    "GLoRA": (glora(LINEAR), "glora", "an update of kind glora changes the model's own weights by multiplying them"),
    "OFT": (put(LINEAR, oft_blocks=random(8, 40, 40)), "oft", "an update of kind oft changes the model's own weights"),
    "BOFT": (put(LINEAR, oft_blocks=random(3, 8, 40, 40)), "boft", "an update of kind boft changes"),
    "full difference": (put(LINEAR, diff=random(320, 768)), "diff", "an update of kind 'diff' is a full difference"),
    "bias": (put(POINT, diff_b=random(320)), "diff", "an update of kind 'diff' is a full difference"),
    "norm": (
        put("input_blocks.1.0.in_layers.0", w_norm=random(320), b_norm=random(320)),
        "diff",
        "is a full difference",
    ),
    "set weight": (put(LINEAR, set_weight=random(320, 768)), "set", "an update of kind 'set' replaces a weight"),
    "a larger layer": (
        lora(LINEAR) | put(LINEAR, reshape_weight=torch.tensor([320, 1024])),
        "lora",
        "this adapter changes the layer's shape",
    ),
    "LoHa of full rank": (
        loha(LINEAR, ranks=(16, 20)),
        "loha",
        "this update of kind loha has rank 320 (16 x 20), not below the smaller side of its 320 x 768 weight",
    ),
    "LoKr of full rank": (
        lokr(LINEAR, "whole", "whole"),
        "lokr",
        "this update of kind lokr has rank 320 (8 x 40), not below the smaller side of its 320 x 768 weight",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_other_kind_is_refused_by_name_with_what_to_do(name):
    import comfy.lora

    tensors, kind, message = REFUSED[name]
    network = comfy_models.load("sd15").model
    key_map = comfy.lora.model_lora_keys_unet(network, {})
    patches = comfy.lora.load_lora(dict(tensors), key_map)  # the host recognises the kind by these keys
    assert {patch[0] if isinstance(patch, tuple) else patch.name for patch in patches.values()} == {kind}
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        low_rank_updates(RewardLoRA("a", "a.safetensors", tensors, None, 1.0), network, key_map)
    assert str(error.value).startswith("a.safetensors: diffusion_model.input_blocks.1.")
    assert str(error.value).endswith(
        "Load it with the host's Load LoRA before the blend (it then belongs to the base), or convert it to a LoRA."
    )


def other_spelling(tensors):
    """Return the same layer under the host's generic name."""
    return {key.replace(kohya_key(LINEAR), f"diffusion_model.{LINEAR}"): tensor for key, tensor in tensors.items()}


TWICE = {
    "two kinds": lora(LINEAR) | loha(LINEAR),
    "two names of the layer": lora(LINEAR) | other_spelling(lora(LINEAR, rank=2)),
    "two spellings of the factors": lora(LINEAR)
    | put(LINEAR, lora_B__weight=random(320, 2), lora_A__weight=random(2, 768)),
    "a factor whole and in parts": lokr(LINEAR, "factored", "factored") | lokr(LINEAR, "whole", "factored"),
    "the second factor whole and in parts": lokr(LINEAR, "factored", "factored") | lokr(LINEAR, "factored", "whole"),
}


@pytest.mark.parametrize("name", TWICE)
def test_two_updates_of_one_layer_are_refused_as_the_host_takes_only_one(name):
    import comfy.lora

    tensors, network = TWICE[name], comfy_models.load("sd15").model
    key_map = comfy.lora.model_lora_keys_unet(network, {})
    assert len(comfy.lora.load_lora(dict(tensors), key_map)) == 1
    with pytest.raises(ValueError, match="are both updates of") as error:
        low_rank_updates(RewardLoRA("a", "a.safetensors", tensors, None, 1.0), network, key_map)
    assert str(error.value).startswith("a.safetensors: ") and f"diffusion_model.{LINEAR}.weight" in str(error.value)
    assert "save them as two files and load both." in str(error.value)


def test_the_host_does_not_apply_a_lokr_with_a_tucker_core():
    """This is the reason of the refusal. If the test fails, a newer host applies such files, and the refusal can go."""
    import comfy.lora

    network = comfy_models.load("sd15").model
    changes = host_changes(network, comfy.lora.model_lora_keys_unet(network, {}), lokr(KERNEL, "whole", "tucker"), 1.0)
    assert not any(change.any() for change in changes.values())


COMPLETE = {
    "LoRA": lora(LINEAR),
    "LoCon with a Tucker core": locon_tucker(KERNEL),
    "LoHa": loha(LINEAR),
    "LoHa with a Tucker core": loha_tucker(KERNEL),
    "LoKr": lokr(LINEAR, "whole", "factored"),
    "GLoRA": glora(LINEAR),
}
OPTIONAL = ("alpha", "lora_mid.weight")


@pytest.mark.parametrize("name", COMPLETE)
def test_a_file_that_lacks_any_one_of_its_tensors_is_refused(name):
    for key in COMPLETE[name]:
        if key.endswith(OPTIONAL):
            continue
        tensors = {other: tensor for other, tensor in COMPLETE[name].items() if other != key}
        with pytest.raises(ValueError, match=r"a\.safetensors: .*incomplete"):
            fitted("sd15", tensors)


CONTROL = {  # the host recognises Flux control adapters by the first two
    "img_in.lora_A.weight": random(2, 16),
    "single_blocks.0.norm.key_norm.scale": random(16),
    "img_in.lora_B.weight": random(128, 2),
}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"img_in.lora_B.weight": None}, "img_in.lora_A.weight has no lora_B.weight beside it; the file is incomplete"),
        (
            {"img_in.lora_A.weight": random(2)},
            "img_in.lora_A.weight has shape [2]; a factor of a LoRA has at least two",
        ),
        (
            {"img_in.lora_B.weight": torch.tensor(1.0)},
            "img_in.lora_B.weight has shape []; a factor of a LoRA has at least two",
        ),
        ({}, "none of its 4 weights belongs to this model's diffusion network"),
    ],
)
def test_what_the_host_would_stumble_over_while_it_renames_keys_is_refused(changes, message):
    """Found by `make fuzz`: the host's converters assume that the expected tensors are there and complete."""
    tensors = {key: tensor for key, tensor in (CONTROL | changes).items() if tensor is not None}
    with pytest.raises(ValueError, match=re.escape(f"a.safetensors: {message}")):
        fitted("sd15", tensors)


@pytest.mark.parametrize(
    "make, factors",
    [
        (locon_tucker, {"lora_mid__weight": random(8, 4, 3, 3), "lora_up__weight": random(320, 8, 1, 1)}),
        (locon_tucker, {"lora_mid__weight": random(4, 4, 1, 1), "lora_down__weight": random(4, 320, 3, 3)}),
        (locon_tucker, {"lora_mid__weight": random(4, 4, 9)}),
        (locon_tucker, {"lora_mid__weight": random(4, 4, 3, 1, 3)}),
        (loha_tucker, {"hada_t1": random(3, 3, 9), "hada_t2": random(3, 3, 9)}),
    ],
    ids=["a core that is not square", "a kernel in down", "a core of three sides", "of five", "LoHa's of three"],
)
def test_a_core_that_the_host_cannot_apply_is_refused(make, factors):
    """Found by `make fuzz`: the shapes of the products fit, but the host stops with an error of torch."""
    tensors = make(KERNEL) | put(KERNEL, **factors)
    adapter, network, key_map = adapter_network_and_keys("sd15", tensors)
    with pytest.raises(
        ValueError, match=r"a\.safetensors: .*factors have shapes .*not those of a Tucker decomposition"
    ):
        low_rank_updates(adapter, network, key_map)
    with pytest.raises((RuntimeError, IndexError)):
        host_changes(network, key_map, tensors, 1.0)


@pytest.mark.parametrize("name", ["LoRA", "LoHa", "LoHa with a Tucker core", "LoKr"])
def test_factors_too_large_for_floats_are_refused_though_alpha_makes_them_small(name):
    """Found by `make fuzz`: the host multiplies by alpha last, when its numbers are already infinite."""
    large = {key: tensor * (1e-30 if key.endswith("alpha") else 1e25) for key, tensor in COMPLETE[name].items()}
    with pytest.raises(
        ValueError, match=r"a\.safetensors: .*its factors make numbers as large as .*, more than a float"
    ):
        fitted("sd15", large)
    moderate = {key: tensor * (1e-8 if key.endswith("alpha") else 1e4) for key, tensor in COMPLETE[name].items()}
    updates, expected = fitted("sd15", moderate)
    ((layer, (pair,)),) = updates.items()
    wanted = expected[f"{layer}.weight"]
    assert difference((pair.up @ pair.down.flatten(1)).reshape(wanted.shape), wanted) < 1e-5


@pytest.mark.parametrize("name", ["LoHa", "LoHa with a Tucker core", "LoKr"])
def test_a_factor_of_another_shape_is_refused(name):
    for key, tensor in COMPLETE[name].items():
        if key.endswith("alpha"):
            continue
        for wrong in (tensor.repeat(2, *[1] * (tensor.ndim - 1)), tensor[None], tensor.flatten(), tensor[:0]):
            with pytest.raises(
                ValueError, match=r"a\.safetensors: .*(factors have shapes|its update is|its rank is 0)"
            ):
                fitted("sd15", COMPLETE[name] | {key: wrong})


def test_nothing_is_multiplied_out_before_it_is_known_to_fit():
    """A file of a few kilobytes that describes terabytes is refused by its shapes, before any product."""
    wide = torch.zeros(1, 1000)
    bombs = [
        put(LINEAR, lokr_w1=wide, lokr_w2=wide.expand(1, 1000)),
        put(LINEAR, lokr_w1=torch.zeros(1000, 1000), lokr_w2=torch.zeros(1000, 1000)),
        put(LINEAR, **{f"hada_w{i}_{s}": torch.zeros(1000, 1000) for i in (1, 2) for s in "ab"}),
        put(
            KERNEL,
            lora_up__weight=torch.zeros(320, 10**4),
            lora_mid__weight=torch.zeros(10**4, 1, 3, 3),
            lora_down__weight=torch.zeros(1, 10**6),
        ),
    ]
    for tensors in bombs:
        with pytest.raises(ValueError, match=r"a\.safetensors: "):
            fitted("sd15", tensors)
