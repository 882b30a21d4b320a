"""How many of the miniature's pictures show the prompt when ComfyUI samples them, for several settings of its KSampler.

    python -P benchmarks/miniature_in_host.py [--prompts N] [--pictures N] [--settings SAMPLER:STEPS:CFG ...]

The prompts are those of ``diffusion-blend miniature check``: every kind, of trained and of held-out combinations. The scheduler
is ``normal``; the seeds are 0, 1, ... for each kind.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tools"), str(ROOT / "benchmarks")]

from diffusion_blend.miniature.checking import draw_prompts  # noqa: E402
from diffusion_blend.miniature.grading import grade  # noqa: E402
from diffusion_blend.miniature.language import KINDS, write  # noqa: E402
from diffusion_blend.miniature.parser import parse  # noqa: E402
from sampling import start_host  # noqa: E402
from scipy.stats import binomtest  # noqa: E402

SETTINGS = ("euler_ancestral:12:2", "euler_ancestral:12:1", "euler_ancestral:20:1", "euler:12:2", "euler:12:1")


def exact(world: tuple[Any, ...], held_out: bool, prompts: int, sampler: str, steps: int, cfg: float) -> list[bool]:
    """Whether each picture shows exactly its prompt."""
    import nodes as host_nodes

    model, clip, vae, latent = world
    encode = host_nodes.CLIPTextEncode().encode
    (empty,) = encode(clip, "")
    found = []
    for kind in KINDS[2:] if held_out else KINDS:
        for seed, wanted in enumerate(draw_prompts(prompts, held_out, kind, 0)):
            (text,) = encode(clip, write(wanted))
            settings = (model, seed, steps, cfg, sampler, "normal", text, empty, latent)
            (pictures,) = host_nodes.VAEDecode().decode(vae, host_nodes.common_ksampler(*settings)[0])
            found += [grade(one, wanted).exact for one in parse(pictures.movedim(-1, 1))]
    return found


def share(found: list[bool]) -> str:
    bounds = binomtest(sum(found), len(found)).proportion_ci(method="wilson")
    return f"{sum(found) / len(found):.3f} ({bounds.low:.3f} to {bounds.high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=12, help="of each kind")
    parser.add_argument("--pictures", type=int, default=4, help="of each prompt")
    parser.add_argument("--settings", nargs="+", default=SETTINGS, metavar="SAMPLER:STEPS:CFG")
    options = parser.parse_args()
    start_host(gpu=False)
    print()
    from diffusion_blend.nodes.miniature import LoadMiniature

    world = LoadMiniature.execute(options.pictures).args
    print("| sampler | steps | cfg | trained combinations | held-out combinations |\n|---|---|---|---|---|")
    for settings in options.settings:
        sampler, steps, cfg = settings.split(":")
        given = (options.prompts, sampler, int(steps), float(cfg))
        trained, held_out = (share(exact(world, held_out, *given)) for held_out in (False, True))
        print(f"| {sampler} | {steps} | {cfg} | {trained} | {held_out} |", flush=True)


if __name__ == "__main__":
    main()
