"""Bake Blend's cross adapters: files that bring one call near to the blend, for every preference."""

import json
from pathlib import Path

import comfy.model_management
import comfy_models
import nodes as host_nodes
import pytest
import safetensors
import torch
from comfy_world import blend_model, difference, load_loras, preference
from diffusion_blend.nodes.adapters.groups import pairs_of
from diffusion_blend.nodes.bake import BakeBlend
from diffusion_blend.nodes.miniature import LoadMiniature


def bake(model, loras, filename, rank=0, **more):
    given = {"filename": filename, "rank": rank, "precision": "float32", "method": "cross", **more}
    return BakeBlend.execute(model, loras, **given).args


def fitting(world, **changes):
    """Inputs of a fast fit of no use."""
    sampling = world.sampling(latent=comfy_models.latent(world.kind, 1))
    given = {"positive": sampling["positive"], "negative": sampling["negative"], "latent_image": sampling["latent"]}
    return {
        **given,
        "steps": 2,
        "cfg": 1.0,
        "trajectories": 1,
        "iterations": 2,
        "learning_rate": 2e-3,
        "seed": 7,
        **changes,
    }


def header(folder, name):
    with safetensors.safe_open(Path(folder) / name, framework="pt") as file:
        return {key: json.loads(file.metadata()[f"diffusion_blend.{key}"]) for key in ("group", "baked")}


def test_one_call_is_nearer_to_the_blend_at_every_preference(folder):
    """The file from disk, by Load Reward LoRAs, in the images of a seed that the fit has not seen, sampled as its runs."""
    model, clip = LoadMiniature.execute(2).args[:2]
    files = ["miniature/colourfulness.safetensors", "miniature/compressibility.safetensors"]
    texts = [host_nodes.CLIPTextEncode().encode(clip, text)[0] for text in ("a red circle", "")]
    latent = {"samples": torch.zeros(2, 4, 16, 16)}
    given = {"positive": texts[0], "negative": texts[1], "latent_image": latent, "steps": 4, "cfg": 3.0}
    fit = {"trajectories": 5, "iterations": 80, "learning_rate": 1e-4, "seed": 7}
    given_out, name, report = bake(model, load_loras(files), "pair", **given, **fit)
    assert name == "pair.cross.safetensors"
    said = header(folder, name)["baked"]
    assert said["error"] < said["soup_error"]
    assert f"soup {said['soup_error']:.3f}, with this file {said['error']:.3f}" in report
    loras = load_loras([*files, name])
    assert len(loras.adapters) == 2 and pairs_of(loras) == pairs_of(given_out) == ((0, 1),)

    several = {"samples": torch.zeros(12, 4, 16, 16)}

    def image(adapters, weights, method):
        changed = blend_model(model, adapters, preference(*weights), method)
        return host_nodes.common_ksampler(changed, 77, 4, 3.0, "euler_ancestral", "normal", *texts, several)[0][
            "samples"
        ]

    for weights in ((0.5, 0.5), (0.3, 0.7)):
        wanted, soup = (image(load_loras(files), weights, method) for method in ("blend", "soup"))
        found = image(loras, weights, "soup")
        assert float((found - wanted).norm()) < float((soup - wanted).norm())
        assert difference(image(given_out, weights, "soup"), found) < 1e-6
    corner = image(load_loras(files), (1.0, 0.0), "blend")
    assert difference(image(loras, (1.0, 0.0), "soup"), corner) < 1e-5


def test_three_adapters_make_one_file_for_each_pair_and_none_is_overwritten(sd3, folder):
    before = {name: tensor.data_ptr() for name, tensor in sd3.model.model.named_parameters()}
    for end in ("", "_2"):
        _, names, report = bake(sd3.model, sd3.loras(3), "three", rank=2, **fitting(sd3))
        assert names.split("\n") == [f"three-{pair}{end}.cross.safetensors" for pair in ("1-2", "1-3", "2-3")]
        assert all(name in report for name in names.split("\n"))
    entries = [header(folder, name)["group"] for name in names.split("\n")]
    assert len({entry["id"] for entry in entries}) == 1 and [entry["member"] for entry in entries] == [0, 1, 2]
    loras = load_loras([*sd3.files[:3], *names.split("\n")])
    assert pairs_of(loras) == ((0, 1), (0, 2), (1, 2))
    assert not any(module._forward_hooks for module in sd3.model.model.modules())
    assert before == {name: tensor.data_ptr() for name, tensor in sd3.model.model.named_parameters()}


def test_what_cross_lacks_is_said_before_the_work(sd3, folder):
    with pytest.raises(ValueError, match="The method cross runs the blend, so connect negative, or choose merge"):
        bake(sd3.model, sd3.loras(2), "x", **fitting(sd3, negative=None))
    with pytest.raises(ValueError, match="1 adapter: a cross adapter belongs to two"):
        bake(sd3.model, sd3.loras(1), "x", **fitting(sd3))
    with pytest.raises(ValueError, match="the same adapter is given twice"):
        bake(sd3.model, load_loras([sd3.files[0]] * 2), "x", **fitting(sd3))
    with pytest.raises(ValueError, match="filename is"):
        bake(sd3.model, sd3.loras(2), "../x", **fitting(sd3))


def test_an_interrupt_in_the_second_pair_leaves_no_file(sd3, folder, monkeypatch):
    from diffusion_blend.nodes.engine import crossing

    seen, real = [], crossing.fit

    def interrupted(*args):
        seen.append(args)
        if len(seen) == 2:
            comfy.model_management.interrupt_current_processing()
        return real(*args)

    monkeypatch.setattr(crossing, "fit", interrupted)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            bake(sd3.model, sd3.loras(3), "stopped", **fitting(sd3))
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert len(seen) == 2 and not list(Path(folder).glob("stopped*"))
