"""Tiny pipelines of the flow-matching families with random weights; nothing is downloaded.

``save_tiny_*`` write whole diffusers folders with text encoders. ``tiny_sd3`` and the like have no text encoders, and their
prompts are given as embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tiny_tokenizer import tiny_tokenizer
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

TEXT = {
    "vocab_size": 78,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
T5 = {"vocab_size": 78, "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
DYNAMIC = {"shift": 3.0, "use_dynamic_shifting": True}


def image_vae(blocks: int = 2, **more: Any) -> AutoencoderKL:
    """An image VAE of four channels; two blocks halve the side once."""
    sizes: dict[str, Any] = {"scaling_factor": 1.5, "shift_factor": 0.06} | more
    return AutoencoderKL(
        block_out_channels=(8,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=4,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **sizes,
    )


def sd3_transformer() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=48,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=16,
    )


def flux_transformer(**more: Any) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        **more,
    )


def qwen_transformer() -> QwenImageTransformer2DModel:
    return QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 12, 12),
    )


def z_image_transformer(width: int = 16) -> ZImageTransformer2DModel:
    network = ZImageTransformer2DModel(
        in_channels=4,
        dim=64,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=width,
        axes_dims=[8, 12, 12],
        axes_lens=[1024, 64, 64],
    )
    with torch.no_grad():  # zeros at first
        network.x_pad_token.normal_()
        network.cap_pad_token.normal_()
    return network


def _without_encoders(pipeline: type, transformer: Any, encoders: int, **more: Any) -> Any:
    names = [
        f"{part}{'' if i == 0 else f'_{i + 1}'}" for i in range(encoders) for part in ("text_encoder", "tokenizer")
    ]
    parts = {"scheduler": FlowMatchEulerDiscreteScheduler(), "vae": image_vae(blocks=1)} | more
    pipe = pipeline(transformer=transformer, **parts, **dict.fromkeys(names))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_sd3(seed: int = 0) -> Any:
    """A StableDiffusion3Pipeline of two blocks."""
    torch.manual_seed(seed)
    return _without_encoders(StableDiffusion3Pipeline, sd3_transformer(), 3)


def sd3_prompt(count: int = 2) -> dict[str, Any]:
    """Arguments of a call of `tiny_sd3`."""
    draw = torch.Generator().manual_seed(1)
    return {
        "prompt_embeds": torch.randn(count, 5, 48, generator=draw),
        "pooled_prompt_embeds": torch.randn(count, 32, generator=draw),
        "negative_prompt_embeds": torch.randn(count, 5, 48, generator=draw),
        "negative_pooled_prompt_embeds": torch.randn(count, 32, generator=draw),
        "guidance_scale": 3.0,
        "height": 8,
        "width": 8,
    }


def tiny_flux(seed: int = 0) -> Any:
    """A FluxPipeline of one double and one single block."""
    torch.manual_seed(seed)
    return _without_encoders(FluxPipeline, flux_transformer(), 2)


def flux_prompt(count: int = 2) -> dict[str, Any]:
    """Arguments of a call of `tiny_flux`."""
    draw = torch.Generator().manual_seed(1)
    return {
        "prompt_embeds": torch.randn(count, 5, 24, generator=draw),
        "pooled_prompt_embeds": torch.randn(count, 32, generator=draw),
        "height": 8,
        "width": 8,
    }


def tiny_qwen(seed: int = 0) -> Any:
    """A QwenImagePipeline of two blocks."""
    torch.manual_seed(seed)
    return _without_encoders(QwenImagePipeline, qwen_transformer(), 1, vae=qwen_vae())


def qwen_prompt(count: int = 2) -> dict[str, Any]:
    """Arguments of a call of `tiny_qwen`."""
    draw = torch.Generator().manual_seed(1)
    return {
        "prompt_embeds": torch.randn(count, 5, 16, generator=draw),
        "true_cfg_scale": 1.0,  # above 1 the pipeline's guidance is not linear in the predictions
        "height": 8,
        "width": 8,
    }


def tiny_z_image(seed: int = 0) -> Any:
    """A ZImagePipeline of two layers."""
    torch.manual_seed(seed)
    return _without_encoders(ZImagePipeline, z_image_transformer(), 1)


def z_image_prompt(count: int = 2) -> dict[str, Any]:
    """Arguments of a call of `tiny_z_image`."""
    draw = torch.Generator().manual_seed(1)
    return {
        "prompt_embeds": list(torch.randn(count, 5, 16, generator=draw)),
        "negative_prompt_embeds": list(torch.randn(count, 3, 16, generator=draw)),
        "guidance_scale": 2.0,
        "height": 8,
        "width": 8,
    }


def _clip_config(hidden: int, projection: int) -> CLIPTextConfig:
    sizes: dict[str, Any] = {"vocab_size": 78, "hidden_size": hidden, "intermediate_size": 2 * hidden}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16}
    return CLIPTextConfig(**sizes, projection_dim=projection, bos_token_id=76, eos_token_id=77, pad_token_id=77)


def _chat_tokenizer(folder: Path) -> Any:
    words = tiny_tokenizer(folder)
    words.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return words


def save_tiny_sd3(folder: Path) -> Path:
    torch.manual_seed(0)
    words = tiny_tokenizer(folder / "words")
    StableDiffusion3Pipeline(
        transformer=sd3_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=image_vae(),
        text_encoder=CLIPTextModelWithProjection(_clip_config(32, 16)),
        tokenizer=words,
        text_encoder_2=CLIPTextModelWithProjection(_clip_config(16, 16)),
        tokenizer_2=words,
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(folder)
    return folder


def save_tiny_flux(folder: Path, **scheduler: Any) -> Path:
    torch.manual_seed(0)
    words = tiny_tokenizer(folder / "words")
    FluxPipeline(
        transformer=flux_transformer(guidance_embeds=True),
        scheduler=FlowMatchEulerDiscreteScheduler(**(DYNAMIC | scheduler)),
        vae=image_vae(),
        text_encoder=CLIPTextModel(_clip_config(32, 32)),
        tokenizer=words,
        text_encoder_2=T5EncoderModel(T5Config(**T5)),
        tokenizer_2=words,
    ).save_pretrained(folder)
    return folder


def qwen_vae() -> AutoencoderKLQwenImage:
    """A VAE that halves the side once and keeps the frames."""
    means: dict[str, Any] = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 0.7, 1.0, 1.2]}
    return AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False], **means
    )


def save_tiny_qwen(folder: Path) -> Path:
    torch.manual_seed(0)
    sections: dict[str, Any] = {"mrope_section": [1, 1, 2]}
    text = TEXT | {"num_hidden_layers": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4} | sections}
    vision: dict[str, Any] = {
        "depth": 1,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 16,
        "out_hidden_size": 16,
    }
    QwenImagePipeline(
        transformer=qwen_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC, shift_terminal=0.02),
        vae=qwen_vae(),
        text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)),
        tokenizer=tiny_tokenizer(folder / "words"),
    ).save_pretrained(folder)
    return folder


def save_tiny_z_image(folder: Path) -> Path:
    torch.manual_seed(0)
    ZImagePipeline(
        transformer=z_image_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=image_vae(),
        text_encoder=Qwen3Model(Qwen3Config(**TEXT, num_hidden_layers=2, head_dim=8)),
        tokenizer=_chat_tokenizer(folder / "words"),
    ).save_pretrained(folder)
    return folder


def save_tiny_klein(folder: Path) -> Path:
    torch.manual_seed(0)
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=1,
        layers_per_block=1,
    )
    vae.bn.running_mean.uniform_(-1, 1)
    vae.bn.running_var.uniform_(0.5, 2)
    Flux2KleinPipeline(
        transformer=Flux2Transformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=48,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        vae=vae,
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**TEXT, num_hidden_layers=27, head_dim=8)),
        tokenizer=_chat_tokenizer(folder / "words"),
    ).save_pretrained(folder)
    return folder


def save_tiny_wan(folder: Path) -> Path:
    torch.manual_seed(0)
    means: dict[str, Any] = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 0.7, 1.0, 1.2]}
    WanPipeline(
        transformer=WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=24,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
        ),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        vae=AutoencoderKLWan(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            **means,
        ),
        text_encoder=UMT5EncoderModel(UMT5Config(**T5)),
        tokenizer=tiny_tokenizer(folder / "words"),
    ).save_pretrained(folder)
    return folder


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "sd3": save_tiny_sd3,
    "flux": save_tiny_flux,
    "flux2_klein": save_tiny_klein,
    "qwen_image": save_tiny_qwen,
    "z_image": save_tiny_z_image,
    "wan": save_tiny_wan,
}
"""Family -> what saves its tiny pipeline in a folder."""
