"""Blend Text Encoder: with all weight on one adapter the image is that of the host's Load LoRA on model and CLIP.

The network is the miniature, whose MODEL and CLIP are the host's own classes.
"""

import math

import comfy.lora
import comfy.sd
import nodes as host_nodes
import pytest
import torch
from adapter_makers import random
from comfy_adapters import write
from comfy_world import blend_model, difference, load_loras, preference
from diffusion_blend.nodes.from_model import RewardLoRAsFromStack
from diffusion_blend.nodes.text_encoder import BlendTextEncoder
from small_text_encoder import STRENGTH, adapter, by_the_host, encode, image, low_rank, sample


@pytest.fixture(scope="module")
def files(small, loras_folder):
    made = [adapter(small, 1), adapter(small, 2), adapter(small, 3, text=False)]
    for number, tensors in enumerate(made):
        write(loras_folder, f"text-{number}", tensors)
    return made


@pytest.fixture(scope="module")
def loras(files):
    return load_loras([f"text-{number}.safetensors" for number in range(3)], [STRENGTH] * 3)


@pytest.mark.parametrize("evaluation", ["sequential", "batched"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_all_weight_on_one_adapter_is_load_lora_on_model_and_clip(small, files, loras, number, evaluation):
    model, clip = small
    weights = [float(i == number) for i in range(3)]
    blended = blend_model(model, loras, preference(*weights), evaluation=evaluation)
    texts = BlendTextEncoder.execute(clip, loras).args[0]
    expected = image(*by_the_host(small, files[number]))
    assert difference(image(blended, texts), expected) < 1e-5
    if number < 2:
        assert difference(image(blended, clip), expected) > 1e-3  # the text encoder's part changes the image


@pytest.mark.parametrize("evaluation", ["sequential", "batched"])
def test_a_blend_sums_predictions_with_each_adapters_own_text(small, files, loras, evaluation):
    model, clip = small
    coefficients = (0.3, 0.5, 0.2)
    parts = [by_the_host(small, tensors) for tensors in files]
    encoded = [[encode(part, text) for text in ("a red circle", "blue")] for _, part in parts]
    blended = blend_model(model, loras, preference(*coefficients), evaluation=evaluation)
    texts = BlendTextEncoder.execute(clip, loras).args[0]
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    one_step = ("euler", "normal")

    def first(model, positive, negative):
        return host_nodes.common_ksampler(model, 3, 1, 3.0, *one_step, positive, negative, latent)[0]["samples"]

    singles = [first(part, *texts) for (part, _), texts in zip(parts, encoded, strict=True)]
    expected = sum(
        c * single for c, single in zip(coefficients, singles, strict=True)
    )  # one Euler step is affine in x0
    assert difference(first(blended, encode(texts, "a red circle"), encode(texts, "blue")), expected) < 1e-4


def test_stochastic_gives_each_image_its_own_adapters_text(small, files, loras):
    model, clip = small
    texts = BlendTextEncoder.execute(clip, loras).args[0]
    latent = {"samples": torch.zeros(6, 4, 16, 16)}
    positive, negative = encode(texts, "a red circle"), encode(texts, "blue")
    blended = blend_model(model, loras, preference(0.5, 0.5, 0.0), method="stochastic")
    got = host_nodes.common_ksampler(blended, 3, 1, 3.0, "euler", "normal", positive, negative, latent)[0]["samples"]
    singles = []
    for number in range(2):
        part, part_clip = by_the_host(small, files[number])
        conds = encode(part_clip, "a red circle"), encode(part_clip, "blue")
        singles.append(host_nodes.common_ksampler(part, 3, 1, 3.0, "euler", "normal", *conds, latent)[0]["samples"])
    errors = torch.stack([(got - single).flatten(1).abs().amax(1) for single in singles])
    assert float(errors.amin(0).max()) < 1e-4
    assert len(set(errors.argmin(0).tolist())) == 2


def test_soup_needs_the_preferences_own_encoding(small, files, loras):
    model, clip = small
    wanted = preference(0.5, 0.3, 0.2)
    blended = blend_model(model, loras, wanted, method="soup")
    with pytest.raises(ValueError, match="connect the same preference to Blend Text Encoder"):
        image(blended, BlendTextEncoder.execute(clip, loras).args[0])
    texts = BlendTextEncoder.execute(clip, loras, wanted).args[0]
    souped, souped_clip = model, clip
    for weight, tensors in zip((0.5, 0.3, 0.2), files, strict=True):
        strength = weight * STRENGTH
        souped, souped_clip = comfy.sd.load_lora_for_models(souped, souped_clip, dict(tensors), strength, strength)
    assert difference(image(blended, texts), image(souped, souped_clip)) < 1e-5


@pytest.mark.parametrize("method", ["blend", "soup"])
def test_adapters_in_another_order_get_their_own_encodings(small, files, loras, method):
    model, clip = small
    other_order = load_loras([f"text-{number}.safetensors" for number in (2, 0, 1)], [STRENGTH] * 3)
    soup = preference(0.0, 0.2, 0.8) if method == "soup" else None
    texts = BlendTextEncoder.execute(clip, other_order, soup).args[0]
    weights = (0.2, 0.8, 0.0)
    expected = image(
        blend_model(model, loras, preference(*weights), method),
        BlendTextEncoder.execute(clip, loras, preference(*weights) if method == "soup" else None).args[0],
    )
    assert difference(image(blend_model(model, loras, preference(*weights), method), texts), expected) < 1e-5
    only = image(
        blend_model(model, loras, preference(0.0, 1.0, 0.0)), BlendTextEncoder.execute(clip, other_order).args[0]
    )
    assert difference(only, image(*by_the_host(small, files[1]))) < 1e-5


def test_another_order_is_refused_where_names_are_no_guide(small, files):
    model, clip = small
    same, other = ([f"text-{number}.safetensors" for number in order] for order in ((0, 0, 1), (0, 1, 0)))
    texts = BlendTextEncoder.execute(clip, load_loras(other)).args[0]
    with pytest.raises(ValueError, match="in another order .*connect the same reward_loras to both"):
        image(blend_model(model, load_loras(same), preference(1, 0, 0)), texts)
    image(blend_model(model, load_loras(other), preference(1, 0, 0)), texts)


def test_other_strengths_on_the_node_are_load_loras_strength_clip(small, files, loras):
    model, clip = small
    texts = BlendTextEncoder.execute(
        clip, load_loras([f"text-{number}.safetensors" for number in range(3)], [0.2] * 3)
    ).args[0]
    expected = image(*comfy.sd.load_lora_for_models(model, clip, dict(files[1]), STRENGTH, 0.2))
    assert difference(image(blend_model(model, loras, preference(0.0, 1.0, 0.0)), texts), expected) < 1e-5


@pytest.mark.parametrize("strengths", [(0.7, 0.0), (0.0, 0.7), (0.5, -0.3)])
def test_a_stacks_strengths_on_model_and_clip_are_load_loras(small, files, strengths):
    model, clip = small
    loras = RewardLoRAsFromStack.execute([("text-0.safetensors", *strengths), ("text-1.safetensors", 1.0)]).result[0]
    assert [(one.network_strength, one.text_strength) for one in loras] == [strengths, (1.0, 1.0)]
    host = comfy.sd.load_lora_for_models(model, clip, dict(files[0]), *strengths)
    found = image(blend_model(model, loras, preference(1.0, 0.0)), BlendTextEncoder.execute(clip, loras).args[0])
    assert difference(found, image(*host)) < 1e-5
    soup = preference(0.6, 0.4)
    expected = model, clip
    for tensors, weight, own in zip(files, (0.6, 0.4), (strengths, (1.0, 1.0)), strict=False):
        expected = comfy.sd.load_lora_for_models(*expected, dict(tensors), *(weight * strength for strength in own))
    found = image(blend_model(model, loras, soup, "soup"), BlendTextEncoder.execute(clip, loras, soup).args[0])
    assert difference(found, image(*expected)) < 1e-5


FC2 = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc2.weight"


@pytest.mark.parametrize("strengths", [(0.0, 0.7), (0.7, 0.0), (0.0, 0.0)])
def test_a_replaced_weight_is_put_in_place_unless_both_strengths_are_0(small, folder, strengths):
    model, clip = small
    key, own = next(one for one in model.model.state_dict().items() if one[0].endswith("attn2.to_k.weight"))
    more = {
        f"{key.removesuffix('.weight')}.set_weight": random(*own.shape) / 8,
        "lora_te_text_model_encoder_layers_0_mlp_fc2.set_weight": random(64, 256) / 8,
    }
    write(folder, "replaces-both", adapter(small, 1) | more)
    stack = [("replaces-both.safetensors", *strengths)]
    expected = image(*host_nodes.LoraLoader().load_lora(model, clip, *stack[0]))
    loras = RewardLoRAsFromStack.execute(stack).result[0]
    found = image(blend_model(model, loras, preference(1.0)), BlendTextEncoder.execute(clip, loras).args[0])
    assert difference(found, expected) < 1e-5
    if any(strengths):
        write(folder, "replaces-none", adapter(small, 1))
        without = host_nodes.LoraLoader().load_lora(model, clip, "replaces-none.safetensors", *strengths)
        assert difference(image(*without), expected) > 1e-3


def test_a_soups_encoding_sums_differences_of_weights_also_for_kinds_that_do_not_add(small, folder):
    _, clip = small
    clip.load_model()  # the host leaves a clone's weights in place until another one is loaded
    key = "lora_te_text_model_encoder_layers_0_mlp_fc2"
    own = clip.cond_stage_model.state_dict()[FC2].float()
    pair = low_rank(key, own.shape, torch.Generator().manual_seed(4))
    scale = {f"{key}.dora_scale": 1.3 * own.norm(dim=1, keepdim=True)}
    files = [
        {f"{key}.set_weight": -own},
        pair | scale,
        {f"{key}.oft_blocks": torch.eye(4).roll(1, 0).repeat(len(own) // 4, 1, 1)},
    ]
    for number, tensors in enumerate(files):
        write(folder, f"soup-{number}", tensors)
    loras = load_loras([f"soup-{number}.safetensors" for number in range(3)], [STRENGTH] * 3)
    encoded = (
        BlendTextEncoder.execute(clip, loras, preference(0.5, 0.3, 0.2))
        .args[0]
        .encode_from_tokens(clip.tokenize("a dog"))
    )
    change = torch.zeros_like(own)
    for coefficient, tensors in zip((0.5, 0.3, 0.2), files, strict=True):
        (patch,) = comfy.lora.load_lora(dict(tensors), {key: FC2}).values()
        alone = comfy.lora.calculate_weight([(STRENGTH, patch, 1.0, None, None)], own.clone(), FC2)
        assert float((alone - own).abs().max()) > 1e-3
        change += coefficient * (alone - own)
    souped = clip.clone()
    souped.add_patches({FC2: ("diff", (change,))}, 1.0)
    expected = souped.encode_from_tokens(clip.tokenize("a dog"))
    assert difference(encoded.others[-1], expected) < 1e-5
    assert difference(encoded.plain, expected) > 1e-3


def test_clip_nodes_behind_it_reach_every_adapters_encoding(small, files, loras):
    model, clip = small
    texts = host_nodes.CLIPSetLastLayer().set_last_layer(BlendTextEncoder.execute(clip, loras).args[0], -2)[0]
    blended = blend_model(model, loras, preference(0.0, 1.0, 0.0))
    part, part_clip = by_the_host(small, files[1])
    expected = image(part, host_nodes.CLIPSetLastLayer().set_last_layer(part_clip, -2)[0])
    assert difference(image(blended, texts), expected) < 1e-5


def test_combined_prompts_keep_their_encodings(small, files, loras):
    model, clip = small
    texts = BlendTextEncoder.execute(clip, loras).args[0]
    part, part_clip = by_the_host(small, files[0])

    def both(model, clip):
        positive = host_nodes.ConditioningCombine().combine(encode(clip, "a red circle"), encode(clip, "a dog"))[0]
        return sample(model, positive, encode(clip, "blue"))

    blended = blend_model(model, loras, preference(1.0, 0.0, 0.0))
    assert difference(both(blended, texts), both(part, part_clip)) < 1e-5


def test_a_node_that_takes_plain_tensors_gets_every_adapters_encoding(small, files, loras):
    _, clip = small
    text, pooled = (
        BlendTextEncoder.execute(clip, loras)
        .args[0]
        .encode_from_tokens(clip.tokenize("a red circle"), return_pooled=True)
    )
    for index, tensors in enumerate(files):
        expected = by_the_host(small, tensors)[1].encode_from_tokens(clip.tokenize("a red circle"), True)
        assert torch.equal(text.others[index], expected[0])
        assert torch.equal(pooled.others[index], expected[1])


def test_the_node_says_which_files_have_text_encoder_weights(small, files, loras, caplog):
    _, clip = small
    with caplog.at_level("INFO", logger="diffusion_blend"):
        BlendTextEncoder.execute(clip, loras)
        assert "With text-encoder weights: text-0, text-1." in caplog.text
        assert BlendTextEncoder.execute(clip, load_loras(["text-2.safetensors"])).args[0] is clip
    assert "None of the adapters has weights for this text encoder" in caplog.text


def test_what_would_be_wrong_is_refused_in_words(small, files, loras, loras_folder):
    model, clip = small
    texts = BlendTextEncoder.execute(clip, loras).args[0]
    positive, negative = encode(texts, "a red circle"), encode(texts, "blue")
    fewer = load_loras(["text-0.safetensors", "text-1.safetensors"])
    with pytest.raises(ValueError, match="encoded for 3 adapters .* blends 2"):
        sample(blend_model(model, fewer, preference(0.5, 0.5)), positive, negative)
    with pytest.raises(ValueError, match=r"encoded for 3 adapters \(.*text-2\), but the model blends 3 \(.*text-0\)"):
        others = load_loras(["text-0.safetensors", "text-1.safetensors", "text-0.safetensors"])
        sample(blend_model(model, others, preference(0.5, 0.5, 0.0)), positive, negative)
    damaged = {key: tensor * math.nan if "lora_te" in key else tensor for key, tensor in files[0].items()}
    write(loras_folder, "text-damaged", damaged)
    with pytest.raises(ValueError, match="text-damaged.safetensors: its text-encoder weights hold NaN"):
        BlendTextEncoder.execute(clip, load_loras(["text-damaged.safetensors"]))


def test_the_plain_models_are_untouched(small, files, loras):
    model, clip = small
    before = image(model, clip)
    texts = BlendTextEncoder.execute(clip, loras).args[0]
    image(blend_model(model, loras, preference(0.4, 0.6, 0.0)), texts)
    assert torch.equal(image(model, clip), before)
    assert torch.equal(image(model, texts), before)  # a plain model takes the base's encoding
