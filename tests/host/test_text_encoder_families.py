"""Blend Text Encoder with several text encoders, pooled outputs, texts of unequal length, and nodes on the conditioning.

The truth is the host's Load LoRA on MODEL and CLIP, on the same graph.
"""

import comfy.sd
import comfy_models
import nodes as host_nodes
import pytest
import tiny_text_encoders
import torch
from comfy_adapters import kohya, write
from comfy_world import blend_model, difference, load_loras, preference
from diffusion_blend.nodes.text_encoder import BlendTextEncoder
from kind_files import file_of

KINDS = ("sdxl", "sd3", "flux")
STRENGTH = 0.7
LONG = "a red circle on a blue square " * 30


def network_file(kind, seed):
    return file_of("LoRA", comfy_models.state_dict(kind), seed) if kind == "flux" else kohya(kind, seed)


@pytest.fixture(scope="module")
def setting(worlds, loras_folder):
    """Of an architecture: MODEL, CLIP, two files with weights of both, and the loaded adapters."""
    made = {}

    def of(kind):
        if kind not in made:
            made.clear()
            files = [network_file(kind, seed) | tiny_text_encoders.adapter(kind, seed) for seed in (1, 2)]
            for number, tensors in enumerate(files):
                write(loras_folder, f"encoders-{kind}-{number}", tensors)
            loras = load_loras([f"encoders-{kind}-{number}.safetensors" for number in range(2)], [STRENGTH] * 2)
            made[kind] = comfy_models.load(kind), tiny_text_encoders.load(kind), files, loras
        return made[kind]

    return of


def encode(clip, text):
    return host_nodes.CLIPTextEncode().encode(clip, text)[0]


def plain(clip):
    return encode(clip, "a red circle"), encode(clip, "blue")


def longer(clip):
    return encode(clip, LONG), encode(clip, "blue")


def averaged(clip):
    both = encode(clip, "a red circle"), encode(clip, LONG)
    return host_nodes.ConditioningAverage().addWeighted(*both, 0.3)[0], encode(clip, "blue")


def joined(clip):
    both = encode(clip, "a red circle"), encode(clip, "a dog")
    return host_nodes.ConditioningConcat().concat(*both)[0], encode(clip, "blue")


def zeroed(clip):
    positive = encode(clip, "a red circle")
    return positive, host_nodes.ConditioningZeroOut().zero_out(positive)[0]


def combined(clip):
    both = encode(clip, "a red circle"), encode(clip, "a dog")
    return host_nodes.ConditioningCombine().combine(*both)[0], encode(clip, "blue")


def areas(clip):
    area = host_nodes.ConditioningSetArea().append(encode(clip, "a dog"), 32, 64, 0, 0, 0.8)[0]
    return host_nodes.ConditioningCombine().combine(encode(clip, "a red circle"), area)[0], encode(clip, "blue")


def ranges(clip):
    spans = host_nodes.ConditioningSetTimestepRange()
    parts = [spans.set_range(encode(clip, text), *span)[0] for text, span in (("a dog", (0, 0.6)), (LONG, (0.6, 1)))]
    return host_nodes.ConditioningCombine().combine(*parts)[0], encode(clip, "blue")


GRAPHS = (plain, longer, averaged, joined, zeroed, combined, areas, ranges)


def image(kind, model, clip, graph, steps=2, **more):
    latent = comfy_models.latent(kind, 2)
    return host_nodes.common_ksampler(model, 3, steps, 3.0, "euler", "simple", *graph(clip), latent)[0]["samples"]


def by_the_host(model, clip, tensors, strength=STRENGTH):
    return comfy.sd.load_lora_for_models(model, clip, dict(tensors), strength, strength)


def few(cases, quick):
    """Mark all cases but a few as full."""
    return [case if case in quick else pytest.param(*case, marks=pytest.mark.full) for case in cases]


EVERY = [(kind, graph, evaluation) for kind in KINDS for graph in GRAPHS for evaluation in ("sequential", "batched")]
QUICK = [
    ("sdxl", areas, "sequential"),
    ("sd3", averaged, "batched"),
    ("flux", zeroed, "batched"),
]
BLENDS = [(kind, evaluation) for kind in KINDS for evaluation in ("sequential", "batched")]


@pytest.mark.parametrize(
    ("kind", "graph", "evaluation"), few(EVERY, QUICK), ids=lambda value: getattr(value, "__name__", value)
)
def test_all_weight_on_one_file_is_load_lora_on_model_and_clip(setting, kind, graph, evaluation):
    model, clip, files, loras = setting(kind)
    texts = BlendTextEncoder.execute(clip, loras).args[0]
    blended = blend_model(model, loras, preference(0.0, 1.0), evaluation=evaluation)
    expected = image(kind, *by_the_host(model, clip, files[1]), graph)
    assert difference(image(kind, blended, texts, graph), expected) < 1e-5
    assert difference(image(kind, blended, clip, graph), expected) > 1e-4  # the text encoders' part changes the image


@pytest.mark.parametrize(("kind", "evaluation"), few(BLENDS, [("flux", "batched")]))
def test_a_blend_sums_predictions_with_each_adapters_own_texts(setting, kind, evaluation):
    model, clip, files, loras = setting(kind)
    coefficients = (0.3, 0.7)
    singles = [image(kind, *by_the_host(model, clip, tensors), joined, steps=1) for tensors in files]
    expected = sum(
        c * single for c, single in zip(coefficients, singles, strict=True)
    )  # one Euler step is affine in x0
    texts = BlendTextEncoder.execute(clip, loras).args[0]
    blended = blend_model(model, loras, preference(*coefficients), evaluation=evaluation)
    assert difference(image(kind, blended, texts, joined, steps=1), expected) < 1e-4


@pytest.mark.parametrize("kind", ["flux", *(pytest.param(kind, marks=pytest.mark.full) for kind in ("sdxl", "sd3"))])
def test_soup_and_stochastic(setting, kind):
    model, clip, files, loras = setting(kind)
    wanted = preference(0.25, 0.75)
    souped = model, clip
    for weight, tensors in zip((0.25, 0.75), files, strict=True):
        souped = by_the_host(*souped, tensors, weight * STRENGTH)
    texts = BlendTextEncoder.execute(clip, loras, wanted).args[0]
    expected = image(kind, *souped, averaged)
    assert difference(image(kind, blend_model(model, loras, wanted, "soup"), texts, averaged), expected) < 1e-5
    got = image(kind, blend_model(model, loras, preference(0.5, 0.5), "stochastic"), texts, averaged, steps=1)
    singles = [image(kind, *by_the_host(model, clip, tensors), averaged, steps=1) for tensors in files]
    errors = torch.stack([(got - single).flatten(1).abs().amax(1) / single.abs().max() for single in singles])
    assert float(errors.amin(0).max()) < 1e-4


def controlled(clip):
    """Apply a ControlNet of the host's base class, whose output depends on the text and on the noisy latent."""
    import comfy.controlnet

    class Control(comfy.controlnet.ControlBase):
        def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
            text = cond["c_crossattn"].float()
            features = text.mean(dim=(1, 2))[:, None, None, None] * torch.tanh(x_noisy.mean(1, keepdim=True)) * 40
            inner = features.expand(-1, 320, -1, -1)
            return {"input": [inner], "middle": [], "output": []}

        def copy(self):
            return Control()

        def get_models(self):
            return []

    positive, negative = plain(clip)
    applied = [
        [text, {**options, "control": Control(), "control_apply_to_uncond": False}] for text, options in positive
    ]
    negative = [[text, {**options, "control": applied[0][1]["control"]}] for text, options in negative]
    return applied, negative


@pytest.mark.parametrize("evaluation", ["batched", pytest.param("sequential", marks=pytest.mark.full)])
def test_a_control_net_reads_each_adapters_own_text(setting, evaluation):
    model, clip, files, loras = setting("sdxl")
    texts = BlendTextEncoder.execute(clip, loras).args[0]
    hosts = [by_the_host(model, clip, tensors) for tensors in files]
    singles = [image("sdxl", *pair, controlled, steps=1) for pair in hosts]
    assert difference(image("sdxl", *hosts[0], plain, steps=1), singles[0]) > 1e-4  # the ControlNet has an effect
    blended = blend_model(model, loras, preference(0.3, 0.7), evaluation=evaluation)
    expected = 0.3 * singles[0] + 0.7 * singles[1]
    assert difference(image("sdxl", blended, texts, controlled, steps=1), expected) < 1e-4
    got = image("sdxl", blend_model(model, loras, preference(0.5, 0.5), "stochastic"), texts, controlled, steps=1)
    errors = torch.stack([(got - single).flatten(1).abs().amax(1) / single.abs().max() for single in singles])
    assert float(errors.amin(0).max()) < 1e-4


def test_plain_models_take_the_bases_encoding(setting):
    model, clip, _, loras = setting("sdxl")
    texts = BlendTextEncoder.execute(clip, loras).args[0]
    assert torch.equal(image("sdxl", model, texts, averaged, steps=1), image("sdxl", model, clip, averaged, steps=1))


def test_operations_that_lose_the_adapters_encodings_are_refused(setting):
    model, clip, _, loras = setting("sdxl")
    texts = BlendTextEncoder.execute(clip, loras).args[0]

    def projected(clip):
        positive, negative = plain(clip)
        return [[torch.nn.functional.normalize(text, dim=-1), options] for text, options in positive], negative

    with pytest.raises(ValueError, match="changes the encoded text in a way that loses the adapters' own encodings"):
        image("sdxl", blend_model(model, loras, preference(0.5, 0.5)), texts, projected)
    others = BlendTextEncoder.execute(clip, load_loras(["encoders-sdxl-0.safetensors"])).args[0]
    one, other = encode(texts, "a red circle"), encode(others, "a dog")
    with pytest.raises(ValueError, match="Two texts that were encoded for different adapters are joined"):
        host_nodes.ConditioningConcat().concat(one, other)


def test_changes_in_place_reach_every_encoding(setting):
    _, clip, _, loras = setting("sdxl")
    ((text, _),) = encode(BlendTextEncoder.execute(clip, loras).args[0], "a red circle")
    before = [text.plain.clone(), *(part.clone() for part in text.others)]
    text *= 2
    text[:, 0] = 1
    for part, old in zip((text.plain, *text.others), before, strict=True):
        expected = old * 2
        expected[:, 0] = 1
        assert torch.equal(part, expected)
