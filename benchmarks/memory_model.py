"""Count the GPU memory of a training step without a GPU.

The networks have their true size and no numbers: tensors on PyTorch's meta device know shapes and storages only. A dispatch
mode follows every storage from its making to its end, through the trainer's own forward and backward pass. So the peak is that
of the allocator. The count has these parts:

- weights: of the denoiser (4-bit layers count .5625 bytes a number: the number and a float32 scale for 64 of them), the VAE and
  the reward network. Text encoders are on the GPU only while prompts are encoded, before anything else is there.
- adapter: float32 parameters, gradients and two moments of AdamW.
- peak: the largest sum of all other storages in one network batch of the update, or in sampling and decoding.
- overhead: CONTEXT bytes for CUDA, and SLACK of the peak for the allocator's blocks and the kernels' workspaces.

    python benchmarks/memory_model.py [--cases sdxl-draft1 ...]
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusion_blend.training.config import AdapterConfig
from diffusion_blend.training.models.diffusers_model import Base, DiffusersModel
from diffusion_blend.training.models.flow_base import flow_run
from diffusion_blend.training.models.protocol import Conditioning, predict_guided
from diffusion_blend.training.models.unet import ddim_run
from diffusion_blend.training.models.vae import VaeDecoder
from diffusion_blend.training.objectives import importance_ratio, policy_loss
from diffusion_blend.training.policy import gaussian_kl, gaussian_log_prob, step_mean, step_std
from memory_architectures import ARCHITECTURES, Architecture, vae_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

GIB = 2**30
CONTEXT = 0.6 * GIB
SLACK = 0.15
CARD = 24.0
NF4_BYTES = 0.5 + 4 / 64
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


class Peak(TorchDispatchMode):
    """Follows the storages that are made inside, and remembers the largest sum of those alive at once, bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.largest = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.alive += storage.nbytes()
        self.largest = max(self.largest, self.alive)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.alive -= self._known.pop(key, 0)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        base: of `ARCHITECTURES`.
        algorithm: draft (DRaFT-1), dpok or grpo.
        batch: images in a network batch.
        guided: whether guidance doubles the rows.
        quantised: nf4 or none.
        reward: numbers of a reward network on the GPU, in bf16.
        rank: of the adapter.
    """

    base: str
    algorithm: str
    batch: int = 1
    guided: bool = True
    quantised: str = "none"
    reward: float = 0.99e9
    rank: int = 16


CASES = {
    "sdxl-draft1": Case("sdxl", "draft"),
    "sdxl-dpok": Case("sdxl", "dpok", batch=2),
    "sd35m-grpo": Case("sd35m", "grpo", batch=2),
    "sd35m-grpo-nf4": Case("sd35m", "grpo", batch=2, quantised="nf4"),
    "z-image-grpo": Case("z-image", "grpo", guided=False),
    "z-image-grpo-nf4": Case("z-image", "grpo", guided=False, quantised="nf4"),
}


@contextmanager
def _in_bf16() -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def numbers(modules: Sequence[Any]) -> int:
    """Parameters of networks."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def weight_bytes(network: Any, quantised: str) -> float:
    """A denoiser's weights: bf16, or nf4 in its linear layers."""
    linear = numbers([m for m in network.modules() if isinstance(m, torch.nn.Linear)]) if quantised == "nf4" else 0
    return linear * NF4_BYTES + 2 * (numbers([network]) - linear)


def _model(case: Case, architecture: Architecture, network: Any, vae: Any) -> DiffusersModel:
    scheduler: dict[str, Any] = {"shift": 3.0} if architecture.flow else SCHEDULER

    def make(config: Mapping[str, Any], steps: int, eta: float, noisy: Any) -> Any:
        return flow_run(4096, config, steps, eta, noisy) if architecture.flow else ddim_run(config, steps, eta, noisy)

    def nothing(_: Any) -> Any:
        raise AssertionError("not called")

    base = Base(
        case.base,
        case.base,
        network,
        scheduler,
        architecture.latent,
        (1024, 1024),
        nothing,
        VaeDecoder(vae),
        call=architecture.call,
        make_steps=make,
    )
    lora = AdapterConfig(rank=case.rank, alpha=float(case.rank))
    return DiffusersModel(base, lora, 0, gradient_checkpointing=True)


def _update(case: Case, model: DiffusersModel, words: Conditioning) -> Tensor:
    """The loss of one network batch, as the algorithms compute it."""
    steps = _steps(model)
    latents = torch.randn(case.batch, *model.latent_shape)
    index = torch.full((case.batch,), len(steps) - 1, device="cpu")
    scale = 4.5 if case.guided else 1.0
    timesteps = steps.timesteps[index].to("meta")
    base_mean = step_mean(steps, index, latents, torch.randn_like(latents))
    if case.algorithm == "draft":

        def last_step(noisy: Tensor) -> Tensor:
            return step_mean(steps, index, noisy, predict_guided(model, noisy, timesteps, words, scale, base=False))

        mean = checkpoint(last_step, latents, use_reentrant=False)
        images = checkpoint(model.decode_differentiable, mean, use_reentrant=False)
        return images.mean()
    output = predict_guided(model, latents, timesteps, words, scale, base=False)
    mean, std = step_mean(steps, index, latents, output), step_std(steps, index, latents)
    log_prob = gaussian_log_prob(torch.randn_like(latents), mean, std)
    ratio = importance_ratio(log_prob, torch.zeros_like(log_prob))
    loss = policy_loss(ratio, torch.ones_like(ratio), 0.2, "ppo").mean()
    return loss + 0.01 * gaussian_kl(mean, base_mean, std).mean()


def _steps(model: DiffusersModel) -> Any:
    with torch.device("cpu"):  # a few numbers
        return model.policy_steps(4, 0.7)


class _Flash(torch.autograd.Function):
    """Attention that keeps its inputs, its output and one float32 per query, as the flash kernels do."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Any:
        del grad
        return tuple(torch.empty_like(saved) for saved in ctx.saved_tensors[:3])


@contextmanager
def flash_attention() -> Iterator[None]:
    """Replace PyTorch's attention, which without a GPU makes the whole matrix of scores."""
    plain = torch.nn.functional.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        result = _Flash.apply(query, key, value)
        assert isinstance(result, Tensor)
        return result

    torch.nn.functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = plain


def count(case: Case) -> dict[str, float]:
    """The parts of a case's memory, bytes.

    Returns:
        ``weights``, ``adapter``, ``update`` and ``decode`` (peaks), ``encode`` (the text encoder alone), ``total``.
    """
    architecture = ARCHITECTURES[case.base]
    with torch.device("meta"), flash_attention():
        with _in_bf16():
            network, vae = architecture.network(), vae_of(architecture.latent[0])
        weights = weight_bytes(network, case.quantised) + 2 * (numbers([vae]) + case.reward)
        largest = max((m.weight.numel() for m in network.modules() if isinstance(m, torch.nn.Linear)), default=0)
        model = _model(case, architecture, network, vae)
        rows = {name: torch.randn(case.batch, *shape) for name, shape in architecture.conditioning.items()}
        words = Conditioning(rows, rows, torch.zeros(case.batch, 8))
        adapter = 16.0 * sum(parameter.numel() for parameter in model.trainable().values())
        with Peak() as update:
            _update(case, model, words).backward()
        with Peak() as decode, torch.no_grad():
            model.decode_differentiable(torch.randn(1, *architecture.latent))
    # The gradients of the adapter are alive at the end and counted in its line.
    peak = {"update": update.largest - adapter / 4, "decode": float(decode.largest)}
    if case.quantised != "none":
        peak["update"] += 2 * largest  # one layer's weight in bf16 at a time
    working = max(peak.values())
    encode = 2 * architecture.encoders * 1.05
    total = max(weights + adapter + working * (1 + SLACK), encode) + CONTEXT
    return {"weights": weights, "adapter": adapter, **peak, "encode": encode, "total": total}


def table(cases: Mapping[str, Case]) -> list[str]:
    """The table in Markdown."""
    lines = [
        "| case | images a batch | weights | adapter, AdamW | update | decoding | total | of 24 GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, case in cases.items():
        found = {part: size / GIB for part, size in count(case).items()}
        parts = " | ".join(f"{found[part]:.1f}" for part in ("weights", "adapter", "update", "decode", "total"))
        lines.append(f"| {name} | {case.batch} | {parts} | {'fits' if found['total'] <= CARD else 'too large'} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--batch", type=int, default=0, help="images in a network batch; 0 takes each case's own")
    options = parser.parse_args(arguments)
    cases = {name: CASES[name] for name in options.cases}
    if options.batch:
        cases = {name: replace(case, batch=options.batch) for name, case in cases.items()}
    print("\n".join(table(cases)))


if __name__ == "__main__":
    main()
