"""``diffusion-blend bake``: the adapters of a preference as one LoRA file, for any diffusers base."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ..artifacts.command_line import check_options, run_command
from ..artifacts.files import check_file, write_once


def main(argv: Sequence[str] | None = None) -> int:
    """Bake the adapters, print the error left for each layer and in all, and return the exit status."""
    options = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    return run_command("bake", lambda: _bake(options))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="diffusion-blend bake", description=__doc__)
    parser.add_argument("--base", type=str, required=True, help="folder of a diffusers base; its weights are not read")
    parser.add_argument("--adapters", type=str, nargs="+", required=True, help="LoRA files for this base")
    parser.add_argument(
        "--weights", type=float, nargs="+", required=True, help="the preference: one weight for each file"
    )
    parser.add_argument(
        "--kl_scale", type=float, default=1.0, help="0 is the base, 1 the adapters, above 1 exaggerates"
    )
    parser.add_argument("--rank", type=int, default=0, help="of every layer; 0 keeps the sum exact")
    parser.add_argument(
        "--output", type=Path, required=True, help="the new .safetensors file; an existing one is refused"
    )
    return parser


def _bake(options: Namespace) -> None:
    check_options(options, {"rank": 0})
    output: Path = options.output
    if output.suffix != ".safetensors":
        raise ValueError(f"output is {str(output)!r}: the file's name must end in .safetensors")
    if output.exists():
        raise ValueError(f"{output} exists: choose another name, or remove the file first")
    check_file(output)
    from .baking import bake_files

    baked = bake_files(options.base, options.adapters, options.weights, options.kl_scale, options.rank)
    if not write_once(output, baked.content()):
        raise ValueError(f"{output} was made by another program in the meantime: choose another name")
    for layer, error in sorted(baked.errors.items(), key=lambda entry: -entry[1]):
        sys.stdout.write(f"{error:8.2%}  {layer}\n")
    found = f"the error left is {baked.error:.2%} of the update" if baked.errors else "the sum is exact"
    sys.stdout.write(f"{output}: {found}\n")
