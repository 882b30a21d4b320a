"""Baked files, loaded by the host's own loaders: the picture of our soup, for every kind of adapter."""

import json
import re
from dataclasses import replace
from pathlib import Path

import comfy.lora
import comfy.model_management
import comfy.sd
import comfy_models
import folder_paths
import nodes as host_nodes
import pytest
import safetensors
import torch
from adapter_kinds import APPLIED
from adapter_makers import LINEAR, lora
from comfy_adapters import low_rank, write
from comfy_world import blend_model, difference, load_loras, preference
from dense_updates import assert_same, host_changes
from diffusion_blend.nodes.adapters.new_files import place, write_new
from diffusion_blend.nodes.bake import BakeBlend
from diffusion_blend.nodes.miniature import LoadMiniature
from diffusion_blend.nodes.regional import RegionalPreferenceNode


def bake(model, loras, weights, filename="baked", rank=0, precision="float32", **more):
    return BakeBlend.execute(model, loras, weights, filename=filename, rank=rank, precision=precision, **more).args


def read(folder, name):
    with safetensors.safe_open(Path(folder) / name, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize("kl_scale", [1.0, 1.6])
def test_the_hosts_load_lora_gives_the_picture_of_our_soup(world, folder, kl_scale):
    weights = preference(0.5, 0.2, 0.3, kl_scale=kl_scale)
    loras = world.loras(3)
    adapter, name, _ = bake(world.model, loras, weights)
    loaded = host_nodes.LoraLoaderModelOnly().load_lora_model_only(world.model, name, 1.0)[0]
    stacked = world.sample(loaded)
    assert difference(stacked, world.sample(blend_model(world.model, loras, weights, "soup"))) < 1e-5
    assert difference(stacked, world.sample(world.model)) > 1e-2
    alone = blend_model(world.model, adapter, preference(1.0))
    assert difference(world.sample(alone), stacked) < 1e-5


@pytest.mark.parametrize("name", APPLIED)
@pytest.mark.parametrize("rank", [0, 2000])
def test_each_kind_is_baked_as_the_change_that_the_host_makes(name, rank, folder):
    """Together with a plain LoRA of the same layer; a rank above all sides reduces nothing."""
    kind, tensors = APPLIED[name]
    other = lora(LINEAR) if kind == "sd15" else None
    files = [write(folder, "bake-first", tensors), *([write(folder, "bake-second", other)] if other else [])]
    loras = load_loras([Path(file).name for file in files], [0.7] * len(files))
    wanted = (0.4, 0.6)[: len(files)] if other else (1.0,)
    model = comfy_models.load(kind)
    hosts = comfy.lora.model_lora_keys_unet(model.model, {})
    _, baked, _ = bake(model, loras, preference(*wanted), rank=rank)
    expected = {}
    for weight, own in zip(wanted, [tensors, other], strict=False):
        for key, change in host_changes(model, hosts, own, 0.7).items():
            expected[key] = expected.get(key, 0) + weight * change
    written, _ = read(folder, baked)
    assert_same(host_changes(model, hosts, written, 1.0), expected)


def test_a_reduced_rank_says_the_error_that_is_left(sd15, folder):
    weights, loras = preference(0.5, 0.5), sd15.loras(2)
    _, exact, _ = bake(sd15.model, loras, weights, "exact")
    _, small, report = bake(sd15.model, loras, weights, "small", rank=3)
    hosts = comfy.lora.model_lora_keys_unet(sd15.model.model, {})
    whole, reduced = (host_changes(sd15.model, hosts, read(folder, name)[0], 1.0) for name in (exact, small))
    missing = sum(float((whole[key] - reduced[key]).double().square().sum()) for key in whole)
    size = sum(float(change.double().square().sum()) for change in whole.values())
    said = float(re.search(r"an error of ([\d.]+)%", report).group(1))
    assert said == pytest.approx(100 * (missing / size) ** 0.5, abs=0.02)
    assert len(report.splitlines()) == 1 + len(whole)
    assert all(tensor.shape[0] <= 3 for key, tensor in read(folder, small)[0].items() if "lora_down" in key)


def test_the_header_says_what_was_baked_from_what(sd15, folder):
    _, name, report = bake(sd15.model, sd15.loras(2), preference(0.25, 0.75, kl_scale=2.0), "folder/mine")
    assert name == "folder/mine.safetensors"
    assert "The sum is exact" in report
    _, header = read(folder, name)
    baked = json.loads(header["diffusion_blend.baked"])
    assert [(a["file"], a["weight"], a["coefficient"]) for a in baked["adapters"]] == [
        (sd15.files[0], 0.25, 0.5),
        (sd15.files[1], 0.75, 1.5),
    ]
    assert (baked["method"], baked["kl_scale"], baked["rank"]) == ("merge", 2.0, "exact")
    assert all(str(folder) not in value for value in header.values())


def test_a_name_that_is_taken_gets_a_number(sd15, folder):
    first, second = (bake(sd15.model, sd15.loras(1), preference(1.0), "twice")[1] for _ in range(2))
    assert (first, second) == ("twice.safetensors", "twice_2.safetensors")
    assert not list(Path(folder).glob(".*partial"))


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "../out", "/etc/out", "a/../../out", "a\\b", "..", "a/.hidden/", "C:x", "a\0b"),
        *("x" * 201, "\u00e4" * 101, "a\u202eb", "a\ud800b", "con", "out/LPT1.x"),
    ],
)
def test_no_name_leaves_the_folder_or_fails_after_the_work(name):
    with pytest.raises(ValueError, match="filename is"):
        place(name)


@pytest.mark.parametrize("name", ["x" * 200, "\u00e4" * 100, "control", "my blend 2.5", "out/\u4f60\u597d"])
def test_other_names_are_taken(name):
    assert place(name).name == f"{name.rpartition('/')[2]}.safetensors"


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    (Path(folder_paths.get_folder_paths("loras")[0]) / "out").symlink_to(tmp_path)
    try:
        with pytest.raises(ValueError, match="leads out of the loras folder"):
            place("out/file")
    finally:
        (Path(folder_paths.get_folder_paths("loras")[0]) / "out").unlink()


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match="No space left on device"):
        write_new(tmp_path / "file.safetensors", b"content")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_stops_before_the_file_is_written(sd15, folder):
    comfy.model_management.interrupt_current_processing()
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            bake(sd15.model, sd15.loras(2), preference(0.5, 0.5), "interrupted")
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert not (Path(folder) / "interrupted.safetensors").exists()


def test_a_preference_without_effect_or_by_region_is_refused(sd15):
    with pytest.raises(ValueError, match="All coefficients are 0"):
        bake(sd15.model, sd15.loras(2), preference(0.5, 0.5, kl_scale=0.0))
    region = RegionalPreferenceNode.execute(
        preference(1.0, 0.0), preference(0.0, 1.0), mask=torch.ones(1, 8, 8), feather=0
    ).args[0]
    with pytest.raises(ValueError, match="cannot be one LoRA"):
        bake(sd15.model, sd15.loras(2), region)


def adapter_of_both(model, clip, seed):
    """A LoRA on a few layers of the network and of the text encoder, in kohya's names."""
    generator = torch.Generator().manual_seed(seed)
    network = {key.removeprefix("diffusion_model."): tensor for key, tensor in model.model.state_dict().items()}
    layers = {f"lora_unet_{key}": tensor for key, tensor in network.items() if key.endswith("attn2.to_v.weight")}
    part = "text_model.encoder.layers.0.mlp.fc1.weight"
    layers[f"lora_te_{part}"] = clip.cond_stage_model.state_dict()[f"clip_l.transformer.{part}"]
    tensors = {}
    for key, weight in layers.items():
        name = key.removesuffix(".weight").replace(".", "_")
        up, down = low_rank(weight.shape, 2, generator)
        tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(3.0)}
    return tensors


def picture(model, clip):
    texts = [host_nodes.CLIPTextEncode().encode(clip, text)[0] for text in ("a red circle", "blue")]
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    return host_nodes.common_ksampler(model, 3, 3, 3.0, "euler", "normal", *texts, latent)[0]["samples"]


def test_text_encoder_weights_go_along(folder):
    """On the miniature: the host's Load LoRA on model and CLIP gives the image of both files stacked by the host."""
    world = LoadMiniature.execute(2).args[:2]
    tensors = [adapter_of_both(*world, seed) for seed in (1, 2)]
    files = [Path(write(folder, f"bake-text-{i}", own)).name for i, own in enumerate(tensors)]
    _, name, report = bake(world[0], load_loras(files, [0.9, 0.5]), preference(0.3, 0.7))
    assert "left out" not in report
    baked = comfy.sd.load_lora_for_models(*world, read(folder, name)[0], 1.0, 1.0)
    stacked = world
    for own, strength in zip(tensors, (0.3 * 0.9, 0.7 * 0.5), strict=True):
        stacked = comfy.sd.load_lora_for_models(*stacked, dict(own), strength, strength)
    expected = picture(*stacked)
    assert difference(picture(*baked), expected) < 1e-5
    assert difference(picture(baked[0], world[1]), expected) > 1e-3


@pytest.mark.parametrize("strength_clip", [None, 0.3])
def test_factors_of_the_training_go_along(folder, strength_clip):
    """The network's and the text encoders' factors differ where a file's header says so (scale "as trained")."""
    world = LoadMiniature.execute(2).args[:2]
    tensors = adapter_of_both(*world, 3)
    loras = load_loras([Path(write(folder, "bake-factors", tensors)).name], [0.8])
    loras = replace(loras, adapters=(replace(loras.adapters[0], scales=(1.5, 0.4), strength_clip=strength_clip),))
    _, name, _ = bake(world[0], loras, preference(1.0))
    baked = comfy.sd.load_lora_for_models(*world, read(folder, name)[0], 1.0, 1.0)
    wanted = comfy.sd.load_lora_for_models(*world, dict(tensors), 0.8 * 1.5, 0.4 * (strength_clip or 0.8))
    assert difference(picture(*baked), picture(*wanted)) < 1e-5


def test_a_damaged_half_for_the_text_encoder_is_named(sd15, folder):
    tensors = lora(LINEAR) | {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.zeros(4, 2)}
    file = Path(write(folder, "bake-half", tensors)).name
    with pytest.raises(ValueError, match=rf"{file}: .*fc1.lora_up.weight comes without lora_down.weight"):
        bake(sd15.model, load_loras([file]), preference(1.0))


def test_other_kinds_of_the_text_encoder_are_left_out_and_said(sd15, folder):
    tensors = lora(LINEAR) | {"lora_te_text_model_encoder_layers_0_mlp_fc1.diff": torch.zeros(4, 4)}
    file = Path(write(folder, "bake-diff", tensors)).name
    report = bake(sd15.model, load_loras([file]), preference(1.0))[2]
    assert f"not plain LoRA were left out: 1 in {file}" in report


def test_two_spellings_of_the_text_encoder_are_refused(sd15, folder):
    files = []
    for name in ("lora_te_text_model_encoder_layers_0_mlp_fc1", "text_encoder.text_model.encoder.layers.0.mlp.fc1"):
        up, down = low_rank(torch.Size([8, 4]), 2, torch.Generator().manual_seed(1))
        tensors = lora(LINEAR) | {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
        files.append(Path(write(folder, f"bake-{name[:5]}", tensors)).name)
    with pytest.raises(ValueError, match="in different ways"):
        bake(sd15.model, load_loras(files), preference(0.5, 0.5))


def test_keys_are_kohyas_with_the_names_that_a1111_and_diffusers_know(sd15, folder):
    """A1111 (extensions-builtin/Lora/networks.py) turns these names into the checkpoint's by the patterns below."""
    _, name, _ = bake(sd15.model, sd15.loras(3), preference(0.3, 0.3, 0.4))
    patterns = (
        r"lora_unet_(up|down)_blocks_(\d+)_(attentions|resnets|upsamplers|downsamplers)_(\d+)(_.+)?",
        r"lora_unet_mid_block_(attentions|resnets)_(\d+)_(.+)",
        r"lora_unet_conv_(in|out)",
    )
    keys = read(folder, name)[0]
    layers = {re.sub(r"\.(lora_(up|down)\.weight|alpha)$", "", key) for key in keys}
    assert all(any(re.fullmatch(pattern, layer) for pattern in patterns) for layer in layers)
    assert {key.removeprefix(next(layer for layer in layers if key.startswith(layer + "."))) for key in keys} == {
        ".lora_up.weight",
        ".lora_down.weight",
        ".alpha",
    }


def test_half_precision_is_half_the_size(sd15, folder):
    names = [bake(sd15.model, sd15.loras(2), preference(0.5, 0.5), p, precision=p)[1] for p in ("float32", "float16")]
    sizes = [(Path(folder) / name).stat().st_size for name in names]
    assert sizes[1] < 0.6 * sizes[0]
    whole, half = (read(folder, name)[0] for name in names)
    assert all(torch.allclose(whole[key].float(), half[key].float(), rtol=2e-3, atol=1e-4) for key in whole)


def fitting(world, **changes):
    """The inputs of the method distil: a fast fit of no use."""
    sampling = world.sampling(latent=comfy_models.latent(world.kind, 1))
    given = {"positive": sampling["positive"], "negative": sampling["negative"], "latent_image": sampling["latent"]}
    fit = {"steps": 2, "cfg": 1.0, "trajectories": 1, "iterations": 2, "learning_rate": 2e-3, "seed": 7}
    return {"method": "distil", **given, **fit, **changes}


@pytest.mark.parametrize("kind", ["miniature", "sd3"])
def test_a_distilled_file_is_nearer_to_the_blend_than_the_soup(worlds, kind, folder):
    """By the host's own Load LoRA, in the images of a seed that the fit has not seen, sampled as the fit's runs."""
    if kind == "miniature":  # of SD 1.5's layout, with trained adapters
        model, clip = LoadMiniature.execute(2).args[:2]
        loras = load_loras(["miniature/colourfulness.safetensors", "miniature/compressibility.safetensors"])
        texts = [host_nodes.CLIPTextEncode().encode(clip, text)[0] for text in ("a red circle", "")]
        latent = {"samples": torch.zeros(4, 4, 16, 16)}
    else:
        model, loras, latent = worlds(kind).model, worlds(kind).loras(2), comfy_models.latent(kind, 2)
        texts = [worlds(kind).positive, worlds(kind).negative]
    given = {"positive": texts[0], "negative": texts[1], "latent_image": latent, "steps": 4, "cfg": 3.0}
    fit = {"trajectories": 4, "iterations": 40, "learning_rate": 1e-4 if kind == "miniature" else 1e-3, "seed": 7}
    weights = preference(0.5, 0.5)
    _, name, report = bake(model, loras, weights, "distilled", method="distil", **given, **fit)
    made = json.loads(read(folder, name)[1]["diffusion_blend.baked"])
    assert made["error"] < made["soup_error"]
    assert f"soup {made['soup_error']:.3f}, this file {made['error']:.3f}" in report
    assert (made["method"], made["iterations"], made["seed"]) == ("distil", 40, 7)
    loaded = host_nodes.LoraLoaderModelOnly().load_lora_model_only(model, name, 1.0)[0]

    several = {"samples": torch.zeros(6, *latent["samples"].shape[1:])}

    def image(changed):
        return host_nodes.common_ksampler(changed, 77, 4, 3.0, "euler_ancestral", "normal", *texts, several)[0][
            "samples"
        ]

    wanted, soup = (image(blend_model(model, loras, weights, method)) for method in ("blend", "soup"))
    assert float((image(loaded) - wanted).norm()) < float((soup - wanted).norm())


def test_the_model_is_as_it_was_after_a_fit(sd3, folder):
    model, kept = sd3.model, {}
    for name, tensor in model.model.named_parameters():
        kept[name] = (id(tensor), tensor.is_inference(), tensor.data_ptr())
    before = sd3.sample(model)
    bake(model, sd3.loras(2), preference(0.5, 0.5), "as-it-was", rank=2, **fitting(sd3))
    for name, tensor in model.model.named_parameters():
        assert kept[name] == (id(tensor), tensor.is_inference(), tensor.data_ptr())
    assert not any(module._forward_hooks for module in model.model.modules())
    assert difference(sd3.sample(model), before) == 0


def test_one_adapter_distilled_is_that_adapter(sd3, folder):
    _, name, report = bake(sd3.model, sd3.loras(1), preference(1.0), "alone", **fitting(sd3, iterations=1))
    assert "soup 0.000" in report
    loaded = host_nodes.LoraLoaderModelOnly().load_lora_model_only(sd3.model, name, 1.0)[0]
    assert difference(sd3.sample(loaded), sd3.sample(blend_model(sd3.model, sd3.loras(1), preference(1.0)))) < 1e-4


def test_a_fit_that_does_not_come_nearer_says_so(sd3, folder):
    worse = fitting(sd3, iterations=1, learning_rate=1.0)
    report = bake(sd3.model, sd3.loras(2), preference(0.5, 0.5), "worse", **worse)[2]
    assert "the fit did not come nearer, so the file holds the soup" in report


def test_distil_says_what_it_lacks_and_an_interrupt_stops_it(sd3, folder, monkeypatch):
    weights, loras = preference(0.5, 0.5), sd3.loras(2)
    with pytest.raises(ValueError, match="so connect positive, latent_image, or choose merge"):
        bake(sd3.model, loras, weights, **fitting(sd3, positive=None, latent_image=None))
    with pytest.raises(ValueError, match="method is 'other'"):
        bake(sd3.model, loras, weights, **fitting(sd3, method="other"))
    seen = []

    def interrupt(updates, factors, examples, held_out, goals, checked, settings, advance):
        seen.append(len(examples))
        comfy.model_management.interrupt_current_processing()
        advance(1, None)

    monkeypatch.setattr("diffusion_blend.nodes.engine.distil.fit", interrupt)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            bake(sd3.model, loras, weights, "stopped", **fitting(sd3))
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert seen and not (Path(folder) / "stopped.safetensors").exists()
