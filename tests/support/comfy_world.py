"""A checkpoint, five adapters as files, and the host's nodes for sampling: the start of most host tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comfy_adapters
import comfy_models
import nodes as host_nodes
from comfy_adapters import ATTENTION, CONVOLUTIONS, LAYERS, Patched, kohya, write
from diffusion_blend.nodes.adapters.files import RewardLoRAs
from diffusion_blend.nodes.inputs import NONE, LoadRewardLoRAs, PreferenceWeights
from torch import Tensor


class World:
    """One architecture.

    The five adapters have unequal ranks, with and without alpha, and are on different layers.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.patched = Patched(kind)
        joint, other = kind == "sd3", LAYERS.get(kind)
        self.adapters = [
            kohya(kind, 1, rank=4),
            kohya(kind, 2, rank=7, alpha=3),
            kohya(
                kind, 3, rank=2, endings=("attn.qkv", "mlp.fc1") if joint else other or (*CONVOLUTIONS, "attn1.to_q")
            ),
            kohya(kind, 4, rank=1, alpha=1, endings=("attn.proj",) if joint else other or ATTENTION[:2]),
            kohya(
                kind, 5, rank=16, alpha=8, endings=("mlp.fc2",) if joint else other or ("ff.net.0.proj", "attn2.to_v")
            ),
        ]
        self.files = [Path(write(folder, f"{kind}-{i}", tensors)).name for i, tensors in enumerate(self.adapters)]
        self.positive = comfy_models.conditioning(kind, 1)
        self.negative = comfy_models.conditioning(kind, 2)

    @property
    def model(self) -> Any:
        """The plain MODEL."""
        return self.patched.model()

    def loras(self, count: int) -> RewardLoRAs:
        """Load the first adapters with the node (chained for more than four)."""
        return load_loras(self.files[:count])

    def sample(self, model: Any, **changes: Any) -> Tensor:
        """Run the host's KSampler on a MODEL."""
        return host_nodes.common_ksampler(model, **self.sampling(**changes))[0]["samples"]

    def sampling(self, **changes: Any) -> dict[str, Any]:
        """Return KSampler's inputs: three steps on two small latents, with changes."""
        inputs: dict[str, Any] = {
            "seed": 5,
            "steps": 3,
            "cfg": 4.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "positive": self.positive,
            "negative": self.negative,
            "latent": comfy_models.latent(self.kind, 2),
        }
        return inputs | changes

    def node_sampling(self, **changes: Any) -> dict[str, Any]:
        """Return the same inputs under the names of our sampler nodes."""
        inputs = self.sampling(denoise=1.0) | changes
        inputs["latent_image"] = inputs.pop("latent")
        return inputs


def load_loras(files: Sequence[str], strengths: Sequence[float] | None = None) -> RewardLoRAs:
    """Run Load Reward LoRAs on these files, four in each chained node."""
    strengths = strengths or [1.0] * len(files)
    result = None
    for start in range(0, len(files), 4):
        names = [*files[start : start + 4], NONE, NONE, NONE, NONE][:4]
        factors = [*strengths[start : start + 4], 1.0, 1.0, 1.0, 1.0][:4]
        inputs = {f"lora_{i}": name for i, name in enumerate(names, 1)} | {
            f"strength_{i}": factor for i, factor in enumerate(factors, 1)
        }
        result = LoadRewardLoRAs.execute(**inputs, reward_loras=result).args[0]
    assert result is not None
    return result


def preference(*weights: float, kl_scale: float = 1.0) -> Any:
    """Run Preference Weights with these numbers, four in each chained node."""
    result = None
    for start in range(0, len(weights), 4):
        values = [*weights[start : start + 4], 0.0, 0.0, 0.0, 0.0][:4]
        inputs = {f"weight_{i}": value for i, value in enumerate(values, 1)}
        result = PreferenceWeights.execute(**inputs, kl_scale=kl_scale, preference=result).args[0]
    return result


def blend_model(model: Any, loras: RewardLoRAs, wanted: Any, method: str = "blend", **options: Any) -> Any:
    """Run Blend Model."""
    from diffusion_blend.nodes.blend_model import BlendModel

    inputs = {"draws": "stratified", "evaluation": "sequential"} | options
    return BlendModel.execute(model, loras, wanted, method=method, **inputs).args[0]


def weights_of(count: int) -> tuple[float, ...]:
    """Return unequal weights of sum 1."""
    total = count * (count + 1) / 2
    return tuple((i + 1) / total for i in range(count))


difference = comfy_adapters.difference
