"""The options of the commands of ``diffusion-blend miniature``."""

from __future__ import annotations

from pathlib import Path

from ..artifacts.settings_parser import SettingsParser
from .language import KIND_SHARES, KINDS


def train_parser() -> SettingsParser:
    """Make the parser of ``miniature train``."""
    train = SettingsParser(description="train the base model; goes on where it stopped")
    train.add_argument("--output", type=Path, required=True, help="folder of the run; the model goes into model/")
    train.add_argument("--steps", type=int, default=5000, help="optimizer steps in all")
    train.add_argument("--seed", type=int, default=0, help="of weights, pictures and noise")
    train.add_argument(
        "--start", type=Path | None, default=None, help="folder of a model to begin with; without it fresh weights"
    )
    train.add_argument("--batch", type=int, default=64, help="pictures a step")
    train.add_argument("--compile", action="store_true", help="use torch.compile: about 1.8 times as fast on a CPU")
    train.add_argument(
        "--high_noise", type=float, default=0.6, help="share of pictures whose timestep is drawn from 600 to 999 alone"
    )
    train.add_argument(
        "--pure_noise", type=float, default=0.1, help="share of pictures at timestep 999 whose latent is noise alone"
    )
    train.add_argument(
        "--mean_of", type=int, default=0, help="renderings whose mean is learned from noise alone; 0 takes one picture"
    )
    train.add_argument(
        "--layout_steps",
        type=int,
        default=0,
        help="steps for which the text encoder alone is trained before (--mean_of)",
    )
    train.add_argument(
        "--shares",
        type=float,
        nargs=len(KINDS),
        default=list(KIND_SHARES),
        metavar="SHARE",
        help=f"weights of the kinds of prompts: {', '.join(KINDS)}",
    )
    train.add_argument("--learning_rate", type=float, default=1e-3, help="highest rate; above 3e-3 it diverges")
    train.add_argument("--warm_up", type=int, default=200, help="steps over which the rate rises")
    train.add_argument("--snr_floor", type=float, default=0.25, help="smallest weight of the error in x0; 0 is min-SNR")
    train.add_argument("--threads", type=int, default=0, help="CPU threads; 0 is torch's own choice")
    return train


def check_parser() -> SettingsParser:
    """Make the parser of ``miniature check``."""
    check = SettingsParser(description="accuracy of a model on trained and held-out combinations")
    check.add_argument("--model", type=Path | None, default=None, help="folder of a model; without it the shipped one")
    check.add_argument("--adapter", type=Path | None, default=None, help="LoRA file of the model, at strength 1")
    check.add_argument("--count", type=int, default=128, help="pictures of each kind")
    return _with_sampling(check)


def render_parser() -> SettingsParser:
    """Make the parser of ``miniature render``."""
    render = SettingsParser(description="write a grid of pictures: rendered, or made by a model")
    render.add_argument("--output", type=Path, required=True, help="PNG file")
    render.add_argument(
        "--model", type=Path | None, default=None, help="folder of a model; without it the renderer draws"
    )
    render.add_argument("--shipped", action="store_true", help="use the shipped model")
    render.add_argument("--prompt", action="append", help="a row of the grid; several may be given")
    render.add_argument("--columns", type=int, default=8, help="pictures of each prompt")
    return _with_sampling(render)


def _with_sampling(parser: SettingsParser) -> SettingsParser:
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=25, help="DDIM steps")
    parser.add_argument("--guidance_scale", type=float, default=3.0, help="classifier-free guidance")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 is torch's own choice")
    return parser


def prompts_parser() -> SettingsParser:
    """Make the parser of ``miniature prompts``."""
    prompts = SettingsParser(description="write training prompts, one per line, for diffusion-blend train")
    prompts.add_argument("--output", type=Path, required=True, help="text file, for --prompts.source")
    prompts.add_argument("--count", type=int, default=48, help="how many different ones")
    prompts.add_argument("--seed", type=int, default=0)
    return prompts


def adapters_parser() -> SettingsParser:
    """Make the parser of ``miniature adapters``."""
    adapters = SettingsParser(description="train the shipped adapters again, or adapters of mixed rewards")
    adapters.add_argument("--output", type=Path, required=True, help="folder of the runs and the adapter files")
    adapters.add_argument(
        "mixtures", nargs="*", help="like softness, or softness:1,colourfulness:3; none are the shipped ones"
    )
    adapters.add_argument("--seed", type=int, default=0, help="of the sampling and the training")
    adapters.add_argument(
        "--stacked", action="store_true", help="train one group of these rewards, made to be stacked at any preference"
    )
    adapters.add_argument(
        "--without_gradients",
        action="store_true",
        help="train by DiffusionNFT (alignment.yaml), as alignment always is, so that adapters for it and others compare",
    )
    return adapters


def set2_parser() -> SettingsParser:
    """Make the parser of ``miniature set2``."""
    set2 = SettingsParser(description="train and bake all adapters of miniature set 2; goes on where it stopped")
    set2.add_argument("--output", type=Path, required=True, help="folder of the runs and the adapter files")
    set2.add_argument("--seed", type=int, default=0, help="of the trainings and the fits")
    set2.add_argument("--only", type=str, nargs="+", default=[], help="parts, like stacked or adapters/softness")
    set2.add_argument("--list", action="store_true", help="print the parts and make nothing")
    return set2


PARSERS = {
    "train": train_parser,
    "check": check_parser,
    "render": render_parser,
    "prompts": prompts_parser,
    "adapters": adapters_parser,
    "set2": set2_parser,
}
