"""Tensors of every kind of adapter that the host's reader knows, for layers of the small checkpoints.

Imported only where a host is on ``sys.path``.
"""

import math

import comfy_models
import torch
from comfy_adapters import low_rank

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


def lokr_of_five_axes():
    """Make LyCORIS' LoKr of a Conv3d, Wan's patch embedding, with a whole second factor."""
    rows, columns, *kernel = shape_of("patch_embedding", "wan")
    factors = {"lokr_w1": random(8, 4) / 4, "lokr_w2": random(rows // 8, columns // 4, *kernel) / 4}
    return {f"diffusion_model.patch_embedding.{name}": factor for name, factor in factors.items()}


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


def dora(layer, axis, make=lora, **options):
    """Make a DoRA in LyCORIS' spelling, with a scale for each output (axis 0) or each input (axis 1)."""
    shape = shape_of(layer)
    scale = torch.ones(len(shape), dtype=torch.int).tolist()
    scale[axis] = shape[axis]
    weight = comfy_models.state_dict("sd15")[f"{layer}.weight"]
    norm = weight.transpose(0, axis).flatten(1).norm(dim=1)
    return make(layer, **options) | put(layer, dora_scale=(norm * (1 + 0.2 * random(shape[axis]))).view(scale))


def glora(layer, rank=4, **more):
    rows, columns = shape_of(layer)[0], shape_of(layer)[1]
    kernel = shape_of(layer)[2:].numel()
    shapes = {"a1": (columns, rank), "a2": (rank, columns), "b1": (rows, rank), "b2": (rank, columns * kernel)}
    return put(layer, **{f"{name}__weight": random(*shape) / 10 for name, shape in shapes.items()}, **more)


def oft(layer, blocks=8, **more):
    size = shape_of(layer)[0] // blocks
    return put(layer, oft_blocks=random(blocks, size, size) / 20, **more)


def boft(layer, factors=3, size=8, **more):
    """Make BOFT's butterfly factors: blocks of even size, as many as fill the layer's outputs."""
    return put(layer, oft_blocks=random(factors, shape_of(layer)[0] // size, size, size) / 20, **more)


def difference_of(layer, **more):
    return put(layer, diff=random(*shape_of(layer)) / 20, **more)
