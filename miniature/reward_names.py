"""The names of the miniature's rewards, for lists that must not import the rewards themselves."""

REWARD_NAMES = ("alignment", "colourfulness", "compressibility", "warmth", "brightness", "softness", "contrast")

READ_THE_PROMPT = ("alignment",)
"""Rewards that compare the picture with its prompt."""

SHIPPED_BASE = "diffusion_blend.miniature.base:shipped"
CONDITIONED_BASE = "diffusion_blend.miniature.conditioned:base"
"""The base whose prompts may have a preference, as a configuration names it."""
