"""Files of ComfyUI's own Train LoRA node after two steps of training: factors, differences of norms and of biases."""

import comfy_models
import nodes as host_nodes
import pytest
import torch
from comfy_adapters import write
from comfy_world import blend_model, difference, load_loras, preference

pytestmark = pytest.mark.newest

ALGORITHMS = ("LoRA", "LoHa", "LoKr", "OFT")


def loaded_again(disable_dynamic=False):
    """Load the checkpoint for training: outside of inference mode, with weights of its own."""
    tensors = {name: tensor.clone() for name, tensor in comfy_models.state_dict("sd15").items()}
    return comfy_models.load_tensors(tensors, dtype=torch.float32)


def trained(model, algorithm):
    """Run the node on two random latents; returns the tensors that Save LoRA Weights would write."""
    from comfy_extras.nodes_train import TrainLoraNode

    generator = torch.Generator().manual_seed(0)
    settings = {
        "batch_size": 2,
        "grad_accumulation_steps": 1,
        "steps": 2,
        "learning_rate": 0.02,
        "rank": 4,
        "optimizer": "AdamW",
        "loss_function": "MSE",
        "seed": 0,
        "training_dtype": "fp32",
        "lora_dtype": "fp32",
        "quantized_backward": False,
        "algorithm": algorithm,
        "gradient_checkpointing": False,
        "checkpoint_depth": 1,
        "offloading": False,
        "existing_lora": "[None]",
        "bucket_mode": False,
        "bypass_mode": False,
    }
    latents = {"samples": torch.randn(2, 4, 8, 8, generator=generator)}
    texts = comfy_models.conditioning("sd15", 1)
    lists = {name: [value] for name, value in settings.items()}
    model = model.clone()
    model.cached_patcher_init = (loaded_again, ())  # as of a MODEL that is loaded from a file
    output = TrainLoraNode.execute(model=[model], latents=[latents], positive=[texts], **lists)
    return next(value for value in output.args if isinstance(value, dict) and "loss" not in value)


@pytest.mark.parametrize(
    "algorithm", ["LoRA", *(pytest.param(name, marks=pytest.mark.full) for name in ALGORITHMS if name != "LoRA")]
)
def test_a_trained_file_gives_the_image_of_the_hosts_loader(sd15, loras_folder, algorithm):
    tensors = {key: value.detach().clone() for key, value in trained(sd15.model, algorithm).items()}
    endings = {key.rpartition(".")[2] for key in tensors}
    assert {"diff", "diff_b"} <= endings, endings  # norms and biases, beside the pairs
    write(loras_folder, "trained", tensors)
    plain = sd15.model
    (loaded,) = host_nodes.LoraLoaderModelOnly().load_lora_model_only(plain, "trained.safetensors", 1.0)
    expected = sd15.sample(loaded, steps=2, cfg=2.0)
    assert difference(sd15.sample(plain, steps=2, cfg=2.0), expected) > 1e-3
    blended = blend_model(plain, load_loras(["trained.safetensors"]), preference(1.0))
    assert difference(sd15.sample(blended, steps=2, cfg=2.0), expected) < 1e-5
