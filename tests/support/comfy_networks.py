"""Tiny networks of the host's own classes, random, with adapters on every layer that the host lets a LoRA attach to."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy_models
import node_helpers
import torch
from torch import Tensor

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Architecture:
    """One architecture, made small.

    Args:
        name: for the table.
        configuration: the host's class in ``comfy.supported_models``.
        network: the arguments of the network's class.
        context: tokens and width of the text features.
        latent: the latent's shape without the batch.
        options: further entries of the conditioning, made from a generator.
        beside: the shape of a second latent, of the sound of a video.
        prepares_texts: whether the network runs layers on the text before the first step.
        weights: makes the weights beside the network that the host's class asks for.
    """

    name: str
    configuration: str
    network: dict[str, Any]
    context: tuple[int, int]
    latent: tuple[int, ...]
    options: Callable[[torch.Generator], dict[str, Any]] = field(default=lambda _: {})
    beside: tuple[int, ...] | None = None
    weights: Callable[[], dict[str, Tensor]] = dict
    prepares_texts: bool = False

    def exists(self) -> bool:
        """Whether this version of the host knows the architecture."""
        if "default_ref_method" in self.network:
            from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

            if "default_ref_method" not in inspect.signature(QwenImageTransformer2DModel.__init__).parameters:
                return False
        return hasattr(comfy.supported_models, self.configuration)

    def model(self) -> Any:
        """A MODEL of its own; all have the same weights."""
        kind = getattr(comfy.supported_models, self.configuration)
        configuration = kind(dict(self.network))
        configuration.set_inference_dtype(torch.float32, None)
        base = configuration.get_model(self.weights(), "", device=CPU)
        comfy_models.fill(base.diffusion_model.state_dict(), 0)
        return comfy.model_patcher.ModelPatcher(base.eval(), CPU, CPU)

    def adapter(self, seed: int, rank: int = 2) -> dict[str, Tensor]:
        """A LoRA on every weight that is no vector, in the host's generic naming."""
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for name, weight in self.model().model.state_dict().items():
            if name.startswith("diffusion_model.") and name.endswith(".weight") and weight.ndim > 1:
                layer, (outputs, inputs, *kernel) = name.removesuffix(".weight"), weight.shape
                down = torch.randn(rank, inputs, *kernel, generator=generator) / math.sqrt(weight[0].numel())
                up = torch.randn(outputs, rank, *[1] * len(kernel), generator=generator) * (0.4 / math.sqrt(rank))
                tensors[f"{layer}.lora_down.weight"], tensors[f"{layer}.lora_up.weight"] = down, up
        return tensors

    def patched(self, tensors: dict[str, Tensor]) -> Any:
        """A MODEL that the host patched with an adapter, loaded."""
        model, _ = comfy.sd.load_lora_for_models(self.model(), None, dict(tensors), 1.0, 0)
        assert len(model.patches) == len(tensors) // 2
        comfy.model_management.load_models_gpu([model])
        return model

    def conditioning(self, seed: int) -> list[Any]:
        """One CONDITIONING entry."""
        generator = torch.Generator().manual_seed(seed)
        plain = [[torch.randn(1, *self.context, generator=generator), {}]]
        return node_helpers.conditioning_set_values(plain, self.options(generator))

    def text_of(self, model: Any, branches: Sequence[int], batch: int) -> Tensor:
        """The texts of a call, 0 for the positive and 1 for the negative, as a MODEL's network prepares them."""
        prepare = model.model.diffusion_model.preprocess_text_embeds
        return torch.cat([prepare(self.conditioning(branch + 1)[0][0]).repeat(batch, 1, 1) for branch in branches])

    def empty(self, batch: int) -> dict[str, Any]:
        """An empty latent."""
        samples = torch.zeros(batch, *self.latent)
        if self.beside is None:
            return {"samples": samples}
        from comfy.nested_tensor import NestedTensor

        return {"samples": NestedTensor((samples, torch.zeros(batch, *self.beside)))}


def reference(*shape: int, **more: Any) -> Callable[[torch.Generator], dict[str, Any]]:
    """An image to edit, and further entries of the conditioning."""
    return lambda generator: {"reference_latents": [torch.randn(1, *shape, generator=generator)], **more}


def whole_text(_: torch.Generator) -> dict[str, Any]:
    """A mask that shows all six tokens of the text."""
    return {"attention_mask": torch.ones(1, 6, dtype=torch.long)}


def _prompt(generator: torch.Generator) -> dict[str, Any]:
    """Ids of text tokens, and the token that stands for the noise level."""
    ids = torch.randint(10, 1000, (1, 12), generator=generator)
    ids[0, -1] = 151673
    return {"text_input_ids": ids}


QWEN = {
    "image_model": "qwen_image", "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2,
    "joint_attention_dim": 48, "axes_dims_rope": (8, 12, 12),
}  # fmt: skip
NEXT_DIT = {
    "image_model": "lumina2", "dim": 96, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
    "in_channels": 16, "cap_feat_dim": 40, "axes_dims": [16, 16, 16], "axes_lens": [64, 64, 64], "qk_norm": True,
}  # fmt: skip
Z_IMAGE = NEXT_DIT | {
    "dim": 256, "n_heads": 4, "n_kv_heads": 4, "axes_dims": [16, 24, 24], "z_image_modulation": True, "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}  # fmt: skip
ARCHITECTURES = [
    Architecture("Hunyuan3D 2.1", "Hunyuan3Dv2_1",
                 {"image_model": "hunyuan3d2_1", "hidden_size": 64, "context_dim": 48, "depth": 3, "num_heads": 2,
                  "num_moe_layers": 1, "num_experts": 2, "guidance_cond_proj_dim": None},
                 (5, 48), (64, 12)),
    Architecture("Qwen-Image", "QwenImage", QWEN, (6, 48), (16, 1, 8, 8)),
    Architecture("Qwen-Image-Edit", "QwenImage", QWEN, (6, 48), (16, 1, 8, 8), reference(16, 1, 4, 4)),
    Architecture("Qwen-Image-Edit 2511", "QwenImage", QWEN | {"default_ref_method": "index_timestep_zero"},
                 (6, 48), (16, 1, 8, 8), reference(16, 1, 4, 4)),
    Architecture("Lumina 2", "Lumina2", NEXT_DIT, (6, 40), (16, 8, 8), whole_text),
    Architecture("Z-Image", "ZImage", Z_IMAGE, (6, 40), (16, 8, 8)),
    Architecture("Z-Image with references", "ZImage",
                 Z_IMAGE, (6, 40), (16, 8, 8), reference(16, 8, 8)),
    Architecture("PixArt", "PixArtAlpha",
                 {"image_model": "pixart_alpha", "input_size": 8, "hidden_size": 48, "depth": 2, "num_heads": 2,
                  "caption_channels": 40, "model_max_length": 6, "pe_interpolation": 1.0, "micro_condition": False},
                 (6, 40), (4, 64, 64)),
    Architecture("Cosmos 1", "CosmosT2V",
                 {"image_model": "cosmos", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16,
                  "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 64,
                  "block_config": "FA-CA-MLP", "pos_emb_cls": "rope3d", "block_x_format": "THWBD",
                  "affline_emb_norm": True, "use_adaln_lora": True, "adaln_lora_dim": 8, "num_blocks": 2, "num_heads": 2,
                  "crossattn_emb_channels": 40, "extra_per_block_abs_pos_emb": True,
                  "extra_per_block_abs_pos_emb_type": "learnable"},
                 (6, 40), (16, 2, 8, 8)),
    Architecture("HiDream-O1", "HiDreamO1",
                 {"image_model": "hidream_o1",
                  "text_config_overrides": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                                            "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
                                            "rope_dims": [4, 2, 2]},
                  "vision_config_overrides": {"hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "depth": 1,
                                              "num_position_embeddings": 16, "deepstack_visual_indexes": ()}},
                 (6, 32), (3, 64, 64), _prompt),
    Architecture("Hunyuan3D 2", "Hunyuan3Dv2",
                 {"image_model": "hunyuan3d2", "context_in_dim": 48, "hidden_size": 64, "num_heads": 2, "depth": 2,
                  "depth_single_blocks": 2},
                 (5, 48), (64, 12)),
    Architecture("AuraFlow", "AuraFlow",
                 {"dim": 64, "n_layers": 3, "n_double_layers": 1, "n_heads": 2, "global_conddim": 64, "cond_seq_dim": 40,
                  "max_seq": 64},
                 (6, 40), (4, 8, 8)),
]  # fmt: skip
