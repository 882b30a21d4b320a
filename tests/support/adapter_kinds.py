"""A file of every kind of adapter that the host applies. Imported only where a host is on ``sys.path``."""

import math

import torch
from adapter_makers import (
    KERNEL,
    LINEAR,
    POINT,
    boft,
    difference_of,
    dora,
    glora,
    locon_tucker,
    loha,
    loha_128,
    loha_tucker,
    lokr,
    lokr_128,
    lokr_of_a_column,
    lokr_of_five_axes,
    lora,
    oft,
    put,
    random,
    rs_lora,
    slices_of,
)

NORM = "input_blocks.1.0.in_layers.0"

# Kind -> (checkpoint, file).
APPLIED = {
    "LoRA": ("sd15", lora(LINEAR)),
    "LoRA of a rank above the layer's sides": ("sd15", lora(LINEAR, rank=400)),
    "LoCon": ("sd15", lora(KERNEL) | lora(POINT)),
    "LoCon with a Tucker core": ("sd15", locon_tucker(KERNEL)),
    "rs-LoRA": ("sd15", rs_lora(LINEAR)),
    "LoHa": ("sd15", loha(LINEAR) | loha(KERNEL) | loha(POINT)),
    "LoHa of full rank": ("sd15", loha(LINEAR, ranks=(16, 20)) | loha(KERNEL, ranks=(20, 20))),
    "LoHa with a Tucker core": ("sd15", loha_tucker(KERNEL)),
    "LoHa with a Tucker core, of full rank": ("sd15", loha_tucker(KERNEL, rank=24)),
    "LoKr, the first whole": ("sd15", lokr(LINEAR, "whole", "factored") | lokr(KERNEL, "whole", "factored")),
    "LoKr, both factored": ("sd15", lokr(LINEAR, "factored", "factored") | lokr(KERNEL, "factored", "factored")),
    "LoKr, the second whole": ("sd15", lokr(LINEAR, "factored", "whole") | lokr(KERNEL, "factored", "whole")),
    "LoKr, both whole": ("sd15", lokr(LINEAR, "whole", "whole") | lokr(KERNEL, "whole", "whole")),
    "LoKr whose second factor has five axes": ("wan", lokr_of_five_axes()),
    "LoKr whose second factor has three axes": (
        "sd15",
        put(
            LINEAR, lokr_w1_a=random(8, 2), lokr_w1_b=random(2, 16), lokr_w2=random(40, 48, 1), alpha=torch.tensor(3.0)
        ),
    ),
    "LoKr of a column": ("sd15", lokr_of_a_column(LINEAR)),
    "LoKr with an alpha that is not used": ("sd15", lokr(LINEAR, "whole", "whole", alpha=math.inf)),
    "LoHa on slices of a fused qkv": ("sd3", slices_of(loha_128)),
    "LoKr on slices of a fused qkv": ("sd3", slices_of(lokr_128)),
    "differences of slices": ("sd3", slices_of(lambda seed: {"diff": random(128, 128, seed=seed) / 20})),
    "DoRA by output": ("sd15", dora(LINEAR, 0) | dora(KERNEL, 0)),
    "DoRA by input": ("sd15", dora(LINEAR, 1)),
    "DoRA of a LoHa": ("sd15", dora(LINEAR, 0, loha)),
    "DoRA of a LoKr": ("sd15", dora(LINEAR, 0, lokr, first="whole", second="factored")),
    "GLoRA": ("sd15", glora(LINEAR) | glora(KERNEL)),
    "OFT": ("sd15", oft(LINEAR) | oft(KERNEL)),
    "OFT with a bound": ("sd15", oft(LINEAR, alpha=torch.tensor(0.5))),
    "BOFT": ("sd15", boft(LINEAR, alpha=torch.tensor(0.0)) | boft(KERNEL, alpha=torch.tensor(0.0))),
    "full difference": ("sd15", difference_of(LINEAR) | difference_of(KERNEL)),
    "bias": ("sd15", put(POINT, diff_b=random(320)) | put(NORM, diff_b=random(320))),
    "norm": ("sd15", put(NORM, w_norm=random(320), b_norm=random(320))),
    "difference of a norm": ("sd15", put(NORM, diff=random(320))),
    "weights that replace": ("sd15", put(LINEAR, set_weight=random(320, 768)) | put(NORM, set_weight=random(320))),
    "a parameter of no layer": ("sd3", {"diffusion_model.pos_embed.diff": random(1, 2304, 128)}),
    "integers": ("sd15", {key: tensor.mul(20).round().to(torch.int8) for key, tensor in lora(LINEAR).items()}),
    "integer alpha": ("sd15", lora(LINEAR) | put(LINEAR, alpha=torch.tensor(3))),
}
