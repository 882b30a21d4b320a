"""Sizes that the renderer, the model and ComfyUI's side share."""

SIZE = 32
"""Side of a picture, pixels."""

# The rendered pictures, in -1..1, have standard deviation .47 and mean -.02: with this factor the latents have 1.
SCALING_FACTOR = 2.1
