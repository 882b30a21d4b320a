"""The miniature as the trainer's base."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from diffusion_blend.miniature import base, command, language, model
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def folder(fresh, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    fresh.save_pretrained(folder)
    return folder


def test_a_model_loads_in_a_process_that_has_imported_nothing(folder):
    code = (
        "import sys; from pathlib import Path; from diffusion_blend.miniature.model import load_pipeline; "
        "print(load_pipeline(Path(sys.argv[1])).vae.config.scaling_factor)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2.1"


def test_the_trainer_takes_it_apart(folder, fresh, monkeypatch):
    monkeypatch.setattr(model, "weights_folder", lambda: folder)
    taken = base.shipped()
    assert taken.latent_shape == (12, 16, 16)
    rows = taken.encode(["a red circle", "two blue squares"])
    ids = fresh.tokenizer("a red circle", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = fresh.text_encoder(ids).last_hidden_state
    torch.testing.assert_close(rows.prompt["encoder_hidden_states"][:1], expected, atol=1e-5, rtol=1e-5)
    # Decoding undoes folding and scaling: a picture comes back as it was.
    picture = torch.rand(1, 3, 32, 32)
    latents = torch.nn.functional.pixel_unshuffle(2 * picture - 1, 2) * 2.1
    torch.testing.assert_close(taken.decode(latents), picture)


def test_training_prompts_are_distinct_and_none_is_held_out(tmp_path, capsys):
    out = tmp_path / "prompts.txt"
    assert command.main(["prompts", "--out", str(out), "--count", "60", "--seed", "3"]) == 0
    prompts = out.read_text().splitlines()
    assert len(set(prompts)) == 60
    assert not any(language.is_held_out(language.read(prompt)) for prompt in prompts)
    assert "60 prompts" in capsys.readouterr().out


def test_the_renderers_grid_needs_no_model(tmp_path):
    from PIL import Image

    out = tmp_path / "grid.png"
    assert command.main(["render", "--out", str(out), "--columns", "2", "--prompt", "a red circle"]) == 0
    with Image.open(out) as image:
        assert image.size == (2 * 96, 96)
        red, green, blue = image.convert("RGB").split()
        # Somewhere there is a vivid red.
        assert any(
            r > 150 and max(g, b) < 110 for r, g, b in zip(red.getdata(), green.getdata(), blue.getdata(), strict=True)
        )


def test_check_says_how_accurate_the_model_with_an_adapter_is(tmp_path, capsys):
    """An adapter at twenty times its strength leaves no prompt in the pictures."""
    source = model.weights_folder().parent / "adapters/compressibility.safetensors"
    tensors = {key: value * (20 if "lora_up" in key else 1) for key, value in load_file(source).items()}
    save_file(tensors, tmp_path / "far.safetensors")
    words = ["check", "--count", "4", "--steps", "10", "--guidance_scale", "1"]

    def exact(*more):
        assert command.main([*words, *more]) == 0
        rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "| all |" in line]
        return [float(row[3]) for row in rows]

    plain, far = exact(), exact("--adapter", str(tmp_path / "far.safetensors"))
    assert min(plain) > 0.6 and max(far) < 0.2
    save_file({}, tmp_path / "empty.safetensors")
    (tmp_path / "weights.bin").write_bytes(b"")
    for name, said in (
        ("none.safetensors", "there is no such file"),
        ("empty.safetensors", "the file holds no LoRA of this model"),
        ("weights.bin", "only .safetensors files are read"),
    ):
        assert command.main([*words, "--adapter", str(tmp_path / name)]) == 1
        assert f"{name}: {said}" in capsys.readouterr().err
