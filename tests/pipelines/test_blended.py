"""Blends in diffusers pipelines: the laws of the blend, and parity with diffusers' own LoRA loading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, EulerAncestralDiscreteScheduler, HeunDiscreteScheduler
from diffusion_blend.blending.groups import Group
from diffusion_blend.blending.plans import Soup
from diffusion_blend.pipelines import BlendedPipeline, blend
from diffusion_blend.pipelines.adapter_files import Adapter
from diffusion_blend.pipelines.blended import make_planner
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tiny_pipelines import save_tiny_sd, save_tiny_sdxl
from tiny_transformers import (
    flux_prompt,
    qwen_prompt,
    sd3_prompt,
    tiny_flux,
    tiny_qwen,
    tiny_sd3,
    tiny_z_image,
    z_image_prompt,
)
from torch import Tensor

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
STEPS = 3


class Case:
    """A pipeline, the arguments of a call, and two adapter files as diffusers writes them."""

    def __init__(self, pipe: Any, arguments: dict[str, Any], folder: Path) -> None:
        self.pipe, self.arguments = pipe, arguments
        self.network = getattr(pipe, "unet", None) or pipe.transformer
        self.files = {name: self.write(folder / name, name, seed) for seed, name in enumerate("ab")}

    def write(self, folder: Path, name: str, seed: int) -> Path:
        """An adapter with random factors, saved by diffusers' own save_lora_weights, alpha in the header."""
        config = LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, init_lora_weights=False)
        torch.manual_seed(seed)
        self.network.add_adapter(config, adapter_name=name)
        tensors = {
            key: torch.randn(value.shape, generator=torch.Generator().manual_seed(seed + i)) * 0.3
            for i, (key, value) in enumerate(get_peft_model_state_dict(self.network, adapter_name=name).items())
        }
        self.network.delete_adapters(name)
        part = "unet" if hasattr(self.pipe, "unet") else "transformer"
        self.pipe.save_lora_weights(
            folder, **{f"{part}_lora_layers": tensors, f"{part}_lora_adapter_metadata": config.to_dict()}
        )
        return folder / "pytorch_lora_weights.safetensors"

    def made(self, seed: int = 0, **over: Any) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        return {**self.arguments, "num_inference_steps": STEPS, "generator": generator, "output_type": "latent", **over}

    def plain(self, weights: dict[str, float] | None = None) -> Tensor:
        """What diffusers makes, with LoRAs that it loads itself."""
        for name in weights or {}:
            self.pipe.load_lora_weights(self.files[name].parent, weight_name=self.files[name].name, adapter_name=name)
        if weights:
            self.pipe.set_adapters(list(weights), list(weights.values()))
        try:
            return self.pipe(**self.made()).images
        finally:
            if weights:
                self.pipe.unload_lora_weights()

    def blended(self, weights: Any, **over: Any) -> Tensor:
        names = ("kl_scale", "method", "draw_seed")
        settings = {key: over.pop(key) for key in names if key in over}
        return BlendedPipeline(self.pipe, self.files)(**self.made(**over), weights=weights, **settings).images


def sd(save: Callable[[Path], Path], folder: Path) -> Case:
    pipe: Any = DiffusionPipeline.from_pretrained(save(folder / "base"), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return Case(pipe, {"prompt": ["a red cat", "a dog"], "height": 8, "width": 8, "guidance_scale": 3.0}, folder)


MAKERS: dict[str, Callable[[Path], Case]] = {
    "sd": lambda folder: sd(save_tiny_sd, folder),
    "sdxl": lambda folder: sd(save_tiny_sdxl, folder),
    "sd3": lambda folder: Case(tiny_sd3(), sd3_prompt(), folder),
    "flux": lambda folder: Case(tiny_flux(), flux_prompt(), folder),
    "qwen": lambda folder: Case(tiny_qwen(), qwen_prompt(), folder),
    "z_image": lambda folder: Case(tiny_z_image(), z_image_prompt(), folder),
}


@pytest.fixture(scope="module", params=list(MAKERS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.set_num_threads(1)
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param))


def close(first: Tensor, second: Tensor) -> None:
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


def test_all_weight_on_one_adapter_is_diffusers_with_that_adapter(case: Case) -> None:
    expected = case.plain({"b": 1.0})
    assert float((expected - case.plain()).abs().max()) > 1e-3  # the adapter does something
    for method in ("blend", "stochastic", "soup", "stacked"):
        close(case.blended([0, 1], method=method), expected)


def test_kl_scale_0_is_the_base_bit_for_bit_and_the_pipeline_is_left_as_it_was(case: Case) -> None:
    before = case.plain()
    forward = case.network.forward
    for method in ("blend", "stochastic", "soup", "stacked"):
        assert torch.equal(case.blended([1, 3], kl_scale=0.0, method=method), before)
    assert case.network.forward == forward and not any(m._forward_hooks for m in case.network.modules())
    assert torch.equal(case.plain(), before)


def test_soup_and_stacked_are_diffusers_weighted_adapters(case: Case) -> None:
    close(case.blended([1, 3], method="soup"), case.plain({"a": 0.25, "b": 0.75}))
    close(case.blended({"b": 0.75, "a": 0.5}, method="stacked"), case.plain({"a": 0.5, "b": 0.75}))


def test_the_order_of_the_adapters_does_not_matter(case: Case) -> None:
    first = case.blended([0.3, 0.7])
    case.files = dict(reversed(case.files.items()))
    try:
        close(case.blended([0.7, 0.3]), first)
    finally:
        case.files = dict(reversed(case.files.items()))


def test_one_step_blends_as_the_predictions_do(case: Case) -> None:
    """The latents after one step are affine in the prediction, so they blend with the same coefficients."""
    one = {"num_inference_steps": 1}
    parts = [case.blended([1, 1], kl_scale=0.0, **one), case.blended([1, 0], **one), case.blended([0, 1], **one)]
    expected = -0.5 * parts[0] + 0.45 * parts[1] + 1.05 * parts[2]
    torch.testing.assert_close(case.blended([0.3, 0.7], kl_scale=1.5, **one), expected, rtol=1e-4, atol=1e-4)


def test_stochastic_draws_one_adapter_for_each_image_and_step(case: Case) -> None:
    calls: list[int] = []
    network = case.network
    count = network.forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return count(*args, **kwargs)

    network.forward = counting
    try:
        drawn = case.blended([1, 1], method="stochastic")
    finally:
        del network.forward
    assert len(calls) == STEPS
    same = case.blended([1, 1], method="stochastic")
    assert torch.equal(drawn, same)
    corners = [case.blended(weights) for weights in ([1, 0], [0, 1])]
    assert all(float((drawn - corner).abs().max()) > 1e-4 for corner in corners)


@pytest.mark.parametrize("scheduler", [EulerAncestralDiscreteScheduler, HeunDiscreteScheduler])
def test_any_scheduler_will_do(tmp_path: Path, scheduler: Any) -> None:
    case = sd(save_tiny_sd, tmp_path)
    case.pipe.scheduler = scheduler.from_config(case.pipe.scheduler.config)
    close(case.blended([0, 1]), case.plain({"b": 1.0}))
    assert case.blended([1, 1], method="stochastic").isfinite().all()


def test_the_context_manager_alone(tmp_path: Path) -> None:
    case = sd(save_tiny_sd, tmp_path)
    with blend(case.pipe.unet, case.files, [0, 1]):
        inside = case.pipe(**case.made()).images
    close(inside, case.plain({"b": 1.0}))


def test_errors_name_the_value(tmp_path: Path) -> None:
    case = sd(save_tiny_sd, tmp_path)
    for over, message in (
        ({"weights": [1]}, "1 weights for 2 adapters"),
        ({"weights": {"c": 1}}, "weights name 'c'"),
        ({"weights": [0, 0]}, "All weights are 0"),
        ({"weights": [1, 1], "method": "magic"}, "method is 'magic'"),
        ({"weights": [1, 1], "method": "stochastic", "kl_scale": 2.0}, "cannot be drawn"),
    ):
        with pytest.raises(ValueError, match=message):
            case.blended(**over)
    with pytest.raises(ValueError, match="neither a unet nor a transformer"):
        BlendedPipeline(object(), case.files)
    with (
        pytest.raises(ValueError, match="4 rows for 3 images"),
        blend(case.network, case.files, [1, 1], method="stochastic", steps=STEPS, images=3),
    ):
        case.pipe(**case.made())


def test_other_types_are_refused_before_anything_runs(tmp_path: Path) -> None:
    case = sd(save_tiny_sd, tmp_path)

    def called(*_: Any, **__: Any) -> None:
        raise AssertionError("the pipeline ran")

    case.pipe.encode_prompt = called
    for over, error, message in (
        ({"weights": 0.5}, TypeError, "weights is 0.5: give one number per adapter"),
        ({"weights": None}, TypeError, "weights is None"),
        ({"weights": "ab"}, TypeError, "weights is 'ab'"),
        ({"weights": torch.tensor(0.5)}, TypeError, "weights is tensor"),
        ({"weights": [1, "x"]}, TypeError, "the weight of adapter 'b' is 'x': it must be a number"),
        ({"weights": {"a": None}}, TypeError, "the weight of adapter 'a' is None"),
        ({"weights": [1, -1]}, ValueError, "the weight of adapter 'b' is -1: .* use a negative kl_scale"),
        ({"weights": [float("nan"), 1]}, ValueError, "the weight of adapter 'a' is nan"),
        ({"weights": [1, 1], "kl_scale": "1"}, TypeError, "kl_scale is '1': it must be a number"),
        ({"weights": [1, 1], "kl_scale": None}, TypeError, "kl_scale is None"),
        ({"weights": [1, 1], "kl_scale": float("nan"), "method": "stacked"}, ValueError, "kl_scale is nan"),
        ({"weights": [1, 1], "klscale": 2.0}, TypeError, "klscale is no argument .*: did you mean kl_scale"),
        ({"weights": [1, 1], "drawseed": 1}, TypeError, "did you mean draw_seed"),
        ({"weights": [1, 1], "num_inference_step": 3}, TypeError, "did you mean num_inference_steps"),
    ):
        with pytest.raises(error, match=message):
            case.blended(**over)
    file = str(case.files["a"])
    sources: list[tuple[Any, type[Exception], str]] = [
        (file, TypeError, "adapters is .*: give a mapping of names to files"),
        (3, TypeError, "adapters is 3"),
        ([3], TypeError, "adapters has a int in its list"),
        ({}, ValueError, "there is no adapter to blend: give a mapping of names to files"),
        ([file, file], ValueError, "two adapters have the name 'pytorch_lora_weights': give a mapping"),
        ({"q": {"a": 1}}, TypeError, "adapter 'q' is a mapping with 'a': 1: give a mapping of keys to tensors"),
        ({"q": None}, ValueError, "adapter 'q' is a NoneType: give a .safetensors file"),
    ]
    for source, error, message in sources:
        with pytest.raises(error, match=message):
            BlendedPipeline(case.pipe, source)


def test_arguments_that_pipelines_take_as_further_ones_are_passed_on(tmp_path: Path) -> None:
    """Stable Diffusion's pipeline reads ``callback`` from its ``**kwargs``."""
    case, seen = sd(save_tiny_sd, tmp_path), list[int]()
    case.blended(weights=[1, 1], callback=lambda step, *_: seen.append(step), callback_steps=1)
    assert seen == list(range(STEPS))


def test_a_list_of_files_is_named_by_their_stems(tmp_path: Path) -> None:
    case = sd(save_tiny_sd, tmp_path)
    (tmp_path / "b" / "style.safetensors").write_bytes(case.files["b"].read_bytes())
    blended = BlendedPipeline(case.pipe, [case.files["a"], str(tmp_path / "b" / "style.safetensors")])
    assert [adapter.name for adapter in blended.adapters] == ["pytorch_lora_weights", "style"]
    close(blended(**case.made(), weights={"style": 1}).images, case.plain({"b": 1.0}))


def test_a_group_that_was_trained_to_be_stacked_is_recognised(caplog: pytest.LogCaptureFixture) -> None:
    def member(i: int, group: str = "one") -> Adapter:
        return Adapter(f"r{i}", {}, 0.1, "", Group("stacked", group, i, ("r0", "r1")))

    plain = Adapter("p", {}, None, "")
    cases = [
        ("blend", [member(0), member(1)], "r0, r1 were trained to be stacked: method='stacked' needs one call"),
        ("stacked", [member(0), member(1)], ""),
        ("stacked", [member(1)], "more adapters, which count as weight 0: r0"),
        ("stacked", [member(0), member(1, "two")], "different groups"),
        ("stacked", [member(0), plain], "p was not trained to be stacked"),
        ("stacked", [plain, plain], ""),
        ("blend", [member(0), plain], ""),
    ]
    for method, adapters, said in cases:
        caplog.clear()
        with caplog.at_level("INFO", "diffusion_blend"):
            planner = make_planner(method, adapters, [0.5] * len(adapters), 1.0)
        assert said in caplog.text and bool(said) == bool(caplog.text), (method, caplog.text)
        if method == "stacked":
            assert planner == Soup((0.5,) * len(adapters))
