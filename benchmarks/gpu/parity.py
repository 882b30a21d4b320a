"""Blends on the device against copies of the network that the host itself patched.

The truth of every case is a sampling run of the host's own patched copies in float32, without TF32. The blend may be at most
``SLACK`` times as far from it as the host's own copies are that compute as the blend does, or as far as ``FLOOR`` if that is
more. A case that fails is a line with ``passed: false``, and the unit ends with an error.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import host
import torch
from records import Records, finite
from torch import Tensor
from unit_options import begin, parser

SLACK, FLOOR = 2.0, 1e-4
WEIGHTS, KL_SCALE = (0.3, 0.7), 1.3
MODES = ("plain", "dynamic-vram", "low-vram", "compile", "quantised", "host-compiler")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Parity:
    """One architecture: the tests' small network of it, two adapters, and the truth.

    Args:
        world: network, adapters as files, conditionings (`comfy_world.World`).
        size: latent height and width.
    """

    def __init__(self, world: Any, size: int) -> None:
        import comfy_models

        self.world, self.coefficients = world, [KL_SCALE * weight for weight in WEIGHTS]
        self.latent = comfy_models.latent(world.kind, 2, size)

    def images(self, model: Any) -> Tensor:
        """A sampling run of two steps."""
        return self.world.sample(model, steps=2, latent=self.latent).float().cpu()

    def references(self, copies: Any) -> tuple[Tensor, Tensor]:
        """The blend by the host's own patching, and the base."""
        blended = copies.blended(self.world.adapters[: len(WEIGHTS)], self.coefficients)
        return self.images(blended), self.images(copies.model())

    def blend(self, model: Any, evaluation: str) -> Any:
        """Our blend on a MODEL."""
        from comfy_world import blend_model, preference

        wanted = preference(*WEIGHTS, kl_scale=KL_SCALE)
        return blend_model(model, self.world.loras(len(WEIGHTS)), wanted, evaluation=evaluation)


def compare(
    parity: Parity, truth: tuple[Tensor, Tensor], own: Tensor | None, model: Any, records: Records, **case: Any
) -> bool:
    """Write one line for each evaluation of the blend on a MODEL.

    Args:
        parity: the architecture.
        truth: blend and base of the host's own copies in float32.
        own: the blend of the host's own copies that compute as the MODEL does; None compares with the base's error.
        model: the MODEL to blend.
        records: where the lines go.
        case: what is tried, for the line.

    Returns:
        Whether all passed.
    """
    from comfy_adapters import difference, hooks_on

    wanted, base = truth
    effect = difference(base, wanted)
    own_error = difference(parity.images(model), base) if own is None else difference(own, wanted)
    good = True
    for evaluation in ("sequential", "batched"):
        blended = parity.blend(model, evaluation)
        error, left = difference(parity.images(blended), wanted), hooks_on(blended)
        passed = error <= max(SLACK * own_error, FLOOR) and effect > error and left == 0
        good &= passed
        values = {"error": error, "own_error": own_error, "effect": effect}
        records.write(
            "parity", architecture=parity.world.kind, evaluation=evaluation, **case, passed=passed, hooks_left=left,
            **{name: finite(value) for name, value in values.items()},
        )  # fmt: skip
    return good


def copies(kind: str, load: Callable[[], Any]) -> Any:
    """The host's patched copies of one network, each made by ``load``."""
    import comfy.model_management
    import comfy.sd
    from comfy_adapters import Patched

    class Copies(Patched):
        def model(self, *adapters: dict[str, Tensor]) -> Any:
            key = tuple(map(id, adapters))
            if key not in self._models:
                model = load()
                for tensors in adapters:
                    model, _ = comfy.sd.load_lora_for_models(model, None, dict(tensors), 1.0, 0)
                self._models[key] = (model, adapters)
            model = self._models[key][0]
            comfy.model_management.load_models_gpu([model])
            return model

    return Copies(kind)


def in_dtypes(parity: Parity, truth: tuple[Tensor, Tensor], names: list[str], records: Records, mode: str) -> bool:
    """The blend with weights of several dtypes."""
    import comfy_models

    good, kind = True, parity.world.kind
    for name in names:

        def load(dtype: torch.dtype = DTYPES[name]) -> Any:
            return comfy_models.load_tensors(comfy_models.state_dict(kind), dtype=dtype)

        same = copies(kind, load)
        own, _ = parity.references(same)
        model = same.model()
        held = facts(model)
        good &= compare(parity, truth, own, model, records, mode=mode, dtype=name, **held)
        if not in_effect(mode, held):
            records.write("without effect", name=mode, architecture=kind, **held)
            good = False
    return good


def in_effect(mode: str, held: dict[str, Any]) -> bool:
    """Return whether the host holds the MODEL as the mode asks, so that the case says something about the mode."""
    if mode == "low-vram":
        return held["partly_loaded"]
    return mode not in ("dynamic-vram", "host-compiler") or held["patcher"] == "ModelPatcherDynamic"


def facts(model: Any) -> dict[str, Any]:
    """How the host holds a MODEL."""
    network = model.model
    return {
        "patcher": type(model).__name__,
        "weights_left_out": getattr(network, "lowvram_patch_counter", 0),
        "partly_loaded": bool(getattr(network, "model_lowvram", False)),
        "computes_in": str(network.manual_cast_dtype or network.get_dtype()).removeprefix("torch."),
    }


def compiled(parity: Parity, truth: tuple[Tensor, Tensor], backend: str, records: Records) -> bool:
    """A MODEL that the host's TorchCompileModel compiled, blended before and after the compiled network has run."""
    import comfy_models
    from comfy_adapters import difference
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    plain = comfy_models.load_tensors(comfy_models.state_dict(parity.world.kind), dtype=torch.float32)
    model = plain.clone()
    set_torch_compile_wrapper(model, backend=backend)
    case = {"mode": "compile", "dtype": "float32", "backend": backend}
    good = compare(parity, truth, truth[0], model, records, **case, order="blend first")
    error = difference(parity.images(model), truth[1])
    records.write("compiled base", architecture=parity.world.kind, error=finite(error), backend=backend)
    good &= compare(parity, truth, truth[0], model, records, **case, order="base first")
    return good and error < 1e-3


def quantised(kind: str, form: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A checkpoint in the host's own quantised form, and the numbers it stands for in float32.

    Args:
        kind: the architecture.
        form: ``float8_e4m3fn`` (a scale per layer) or ``int8_tensorwise`` (a scale per output).
    """
    import comfy_models

    checkpoint, meant = {}, {}
    label = torch.tensor(list(json.dumps({"format": form}).encode()), dtype=torch.uint8)
    for name, tensor in comfy_models.state_dict(kind).items():
        checkpoint[name] = meant[name] = tensor
        if not name.endswith(("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")):
            continue
        if form == "int8_tensorwise":
            scale = tensor.abs().amax(1, keepdim=True) / 127
            checkpoint[name] = (tensor / scale).round().to(torch.int8)
        else:
            scale = tensor.abs().max() / torch.finfo(torch.float8_e4m3fn).max
            checkpoint[name] = (tensor / scale).to(torch.float8_e4m3fn)
        meant[name] = checkpoint[name].float() * scale
        layer = name.removesuffix(".weight")
        checkpoint[f"{layer}.weight_scale"], checkpoint[f"{layer}.comfy_quant"] = scale, label
    return checkpoint, meant


def quantised_cases(parity: Parity, records: Records, *, cpu: bool) -> bool:
    """fp8 and int8 checkpoints, computed by comfy-kitchen where its library is there."""
    import comfy.quant_ops
    import comfy_models

    kind, good = parity.world.kind, True
    native = bool(list(Path(sys.modules["comfy_kitchen"].__file__ or "").parent.glob("backends/cuda/*.so")))
    if not native and not cpu:
        records.missing("comfy-kitchen's NVIDIA kernels", "the folder was packed without --with-kitchen")
    for form in ("float8_e4m3fn", "int8_tensorwise"):
        if form not in comfy.quant_ops.QUANT_ALGOS:
            records.missing(form, "this host does not know this form")
            continue
        checkpoint, meant = quantised(kind, form)
        truth = parity.references(copies(kind, lambda m=meant: comfy_models.load_tensors(m, dtype=torch.float32)))
        model = comfy_models.load_tensors(checkpoint)
        layer = model.model.diffusion_model.joint_blocks[0].x_block.mlp.fc1
        case = {"mode": "quantised", "dtype": form, "weights": type(layer.weight).__name__, "native_kernels": native}
        good &= compare(parity, truth, None, model, records, **case, **facts(model))
    return good


def start(options: argparse.Namespace, records: Records) -> bool:
    """Start the host in the mode that is tried; False where it cannot be, which is written."""
    dynamic = options.mode in ("dynamic-vram", "host-compiler")
    if options.cpu and (dynamic or options.mode == "low-vram"):
        records.missing(options.mode, "needs a GPU")
        return False
    host.start(cpu=options.cpu, dynamic_vram=dynamic, novram=options.mode == "low-vram")
    if options.mode == "host-compiler" and not host.has_option("disable_comfy_compiler"):
        records.missing("host-compiler", "this host has no compiler of its own (no option --disable-comfy-compiler)")
        return False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return True


def main() -> int:
    options_parser = parser(__doc__)
    options_parser.add_argument("--mode", choices=MODES, default="plain", help="how the host runs the network")
    options = options_parser.parse_args()
    records, clock = begin(options)
    if not start(options, records):
        return 0
    kinds = {"quantised": ["sd3"], "compile": ["sd3"]}.get(options.mode, ["sd15", "sd3", "sdxl"])
    if options.tiny:
        kinds = kinds[:1]
    good = True
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        import folder_paths
        from comfy_world import World

        folder_paths.folder_names_and_paths["loras"] = ([folder], {".safetensors"})
        for kind in kinds:
            parity = Parity(World(kind, Path(folder)), 8 if options.tiny else 16)
            if options.mode == "quantised":
                good &= quantised_cases(parity, records, cpu=options.cpu)
                continue
            truth = parity.references(parity.world.patched)
            if options.mode == "compile":
                good &= compiled(parity, truth, "eager" if options.tiny else "inductor", records)
            else:
                names = list(DTYPES) if options.mode == "plain" else ["float16"]
                good &= in_dtypes(parity, truth, names, records, options.mode)
    print(f"{options.mode}: {'all passed' if good else 'a case FAILED'}; {clock.left():.0f} s left")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
