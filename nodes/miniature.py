"""The node Load Miniature: the tiny model that comes with the extension."""

from __future__ import annotations

from comfy_api.latest import io

from .engine.miniature import empty_latent, load_clip, load_model, load_vae
from .schema import make_schema


class LoadMiniature(io.ComfyNode):
    """The shipped model for trying things out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="LoadMiniature",
            display_name="Load Miniature",
            description="A tiny text-to-image model that comes with Diffusion Blend: pictures of 32 x 32 pixels in a second on any computer. Its adapters are in Load Reward LoRAs under miniature/. Prompts: 'a red circle', 'two blue squares', 'a green square above a cyan triangle'.",
            search_aliases=["diffusion blend", "demo", "try"],
            inputs=[
                io.Int.Input(
                    "batch_size",
                    default=4,
                    min=1,
                    max=256,
                    tooltip="How many pictures the empty latent holds.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The diffusion model, 2.2 million parameters."),
                io.Clip.Output(
                    display_name="clip",
                    tooltip="Its text encoder; it knows six colours, three shapes, counts and places.",
                ),
                io.Vae.Output(display_name="vae", tooltip="Its VAE: latents are pictures."),
                io.Latent.Output(
                    display_name="latent", tooltip="An empty latent of the right size: 32 x 32, 3 channels."
                ),
            ],
        )

    @classmethod
    def execute(cls, batch_size: int) -> io.NodeOutput:
        return io.NodeOutput(load_model(), load_clip(), load_vae(), empty_latent(batch_size))
