"""``diffusion-blend bake`` with the methods distil and cross: nearer to the blend than the soup, and files that load."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import diffusion_blend
import pytest
import torch
from diffusion_blend import command
from diffusion_blend.pipelines import BlendedPipeline
from diffusion_blend.pipelines.adapter_files import read_adapter
from diffusion_blend.pipelines.blended import blend
from diffusion_blend.pipelines.trajectories import Settings, load_pipeline, record
from lora_bases import Base
from safetensors import safe_open


@pytest.fixture(scope="module", params=["sd", pytest.param("sdxl", marks=pytest.mark.full)])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    torch.set_num_threads(1)
    made = Base(request.param, tmp_path_factory.mktemp(request.param))
    (made.folder / "prompts.txt").write_text("a red cat\n\na blue dog\n", encoding="utf-8")
    return made


FIT = {
    "prompts": "prompts.txt",
    "steps": "3",
    "trajectories": "10",
    "height": "16",
    "width": "16",
    "iterations": "60",
    "batch": "2",
    "learning_rate": "2e-3",
}


def run(base: Base, method: str, output: Path, *words: str, names: str = "ab") -> int:
    """Run the command on the adapters of these names."""
    files = [file for file in base.files if Path(file).stem in names]
    fit = FIT | {"prompts": str(base.folder / "prompts.txt")}
    options = [word for name, value in fit.items() for word in (f"--{name}", value)]
    given = ["--base", str(base.path), "--adapters", *files, "--output", str(output), "--method", method]
    return command.main(["bake", *given, *options, *words])


def distil(base: Base, output: Path, *words: str) -> int:
    return run(base, "distil", output, "--weights", "1", "1", *words)


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["diffusion_blend.baked"])


def test_the_file_is_nearer_to_the_blend_than_the_soup(base: Base, tmp_path: Path, capsys: Any) -> None:
    """Measured again on calls of the test's own: diffusers loads the file itself."""
    output = tmp_path / "distilled.safetensors"
    assert distil(base, output) == 0
    made, printed = header(output), capsys.readouterr().out
    assert made["method"] == "distil"
    assert made["error"] < 0.9 * made["soup_error"]
    assert f"soup {made['soup_error']:.4f}" in printed
    assert f"error to the blend {made['error']:.4f}" in printed
    assert [entry["weight"] for entry in made["adapters"]] == [1.0, 1.0]
    adapters = BlendedPipeline(base.pipe, dict(zip("ab", base.files[:2], strict=True))).adapters
    calls = _calls(base, adapters)
    wanted, soup = (outputs(base, calls, adapters, [0.5, 0.5], method) for method in ("blend", "soup"))
    base.pipe.load_lora_weights(str(tmp_path), weight_name=output.name)
    try:
        found = outputs(base, calls)
    finally:
        base.pipe.unload_lora_weights()
    assert float((found - wanted).norm()) < 0.95 * float((soup - wanted).norm())


def outputs(base: Base, calls: Any, adapters: Any = (), weights: Any = (), method: Any = "blend") -> torch.Tensor:
    """What the network gives for calls, with a blend on it if there are adapters."""
    blended = blend(base.network, adapters, weights, method=method) if adapters else nullcontext()
    with torch.no_grad(), blended:
        return torch.stack([base.network(**call, return_dict=False)[0] for call in calls])


def _calls(base: Base, adapters: Any) -> list[dict[str, Any]]:
    """The network calls of two of the blend's runs, from noise that the fit has not seen."""
    seen: list[dict[str, Any]] = []

    def keep(_: Any, args: Any, kwargs: Any) -> None:
        given = {"sample": args[0], "timestep": args[1], **kwargs}
        seen.append({name: value for name, value in given.items() if name != "return_dict"})

    handle = base.network.register_forward_pre_hook(keep, with_kwargs=True)
    size = {"height": 16, "width": 16, "num_inference_steps": 3, "output_type": "latent"}
    try:
        with blend(base.network, adapters, [0.5, 0.5]):
            for seed in (99, 100):
                base.pipe("a red cat", generator=torch.Generator().manual_seed(seed), **size)
    finally:
        handle.remove()
    return seen


def test_cross_files_bring_the_soup_nearer_and_have_no_effect_at_a_corner(
    base: Base, tmp_path: Path, caplog: Any, capsys: Any
) -> None:
    assert run(base, "cross", tmp_path / "pair.cross.safetensors") == 0
    assert "of the soup's error to the blend is left" in capsys.readouterr().out
    sources = {**dict(zip("ab", base.files[:2], strict=True)), "pair": tmp_path / "pair.cross.safetensors"}
    with_cross = BlendedPipeline(base.pipe, sources).adapters
    plain = [adapter for adapter in with_cross if adapter.name != "pair"]
    calls = _calls(base, plain)
    for weights in ([0.5, 0.5], [0.3, 0.7]):
        wanted, soup = (outputs(base, calls, plain, weights, method) for method in ("blend", "soup"))
        found = outputs(base, calls, with_cross, weights, "soup")
        assert float((found - wanted).norm()) < 0.95 * float((soup - wanted).norm())
        torch.testing.assert_close(outputs(base, calls, with_cross, weights), wanted)  # no weight of its own
    corner = outputs(base, calls, with_cross, [1.0, 0.0], "soup")
    torch.testing.assert_close(corner, outputs(base, calls, plain, [1.0, 0.0]))
    assert "cross adapter" not in caplog.text
    alone = [adapter for adapter in with_cross if adapter.name != "b"]
    torch.testing.assert_close(outputs(base, calls, alone, [1.0], "soup"), corner)
    assert "the cross adapter of a and b, which are not both there" in caplog.text
    with pytest.raises(ValueError, match="only cross adapters are given"):
        outputs(base, calls, [a for a in with_cross if a.name == "pair"], [])


def test_three_adapters_make_a_file_for_each_pair(base: Base, tmp_path: Path, caplog: Any) -> None:
    few = ("--iterations", "1", "--trajectories", "1", "--rank", "2")
    assert run(base, "cross", tmp_path / "x.cross.safetensors", *few, names="abc") == 0
    files = [tmp_path / f"x-{pair}.cross.safetensors" for pair in ("1-2", "1-3", "2-3")]
    entries = []
    for file in files:
        with safe_open(file, framework="pt") as opened:
            entries.append(json.loads(opened.metadata()["diffusion_blend.group"]))
    assert [entry["pair_names"] for entry in entries] == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert {entry["id"] for entry in entries} == {entries[0]["id"]}
    sources = {**dict(zip("ab", base.files[:2], strict=True)), "pair": files[0]}
    with blend(base.network, sources, [0.5, 0.5], method="soup"):
        pass
    assert "has more files, which are not there: a x c, b x c" in caplog.text


def test_what_cross_cannot_have_is_refused(base: Base, tmp_path: Path, capsys: Any) -> None:
    output, taken = tmp_path / "o.cross.safetensors", tmp_path / "t-1-2.cross.safetensors"
    taken.write_bytes(b"mine")
    assert run(base, "cross", output, "--weights", "1", "1") == 1
    assert run(base, "cross", tmp_path / "o.safetensors") == 1
    assert run(base, "cross", output, names="a") == 1
    assert run(base, "cross", tmp_path / "t.cross.safetensors", names="abc") == 1
    assert run(base, "distil", tmp_path / "o.safetensors") == 1
    said = capsys.readouterr().err
    for words in (
        "leave out --weights",
        "must end in .cross",
        "at least two files",
        "exists",
        "distil needs --weights",
    ):
        assert words in said
    assert taken.read_bytes() == b"mine"


def test_a_fit_that_does_not_get_better_says_so_and_writes_the_soup(base: Base, tmp_path: Path, capsys: Any) -> None:
    """At a learning rate of no effect, and at a rank below the soup's."""
    output = tmp_path / "same.safetensors"
    assert distil(base, output, "--iterations", "1", "--learning_rate", "1e3", "--rank", "1") == 0
    assert "did not come nearer to the blend than the soup" in capsys.readouterr().out
    made = header(output)
    assert made["error"] == made["soup_error_at_this_rank"] >= made["soup_error"]
    with safe_open(output, framework="pt") as file:
        ranks = {file.get_tensor(key).shape[0] for key in file.keys() if "lora_down" in key}  # noqa: SIM118
    assert ranks == {1}


def test_eta_is_the_noise_of_the_recorded_runs() -> None:
    """On the miniature, whose scheduler is DDIM: the first call is the same, later ones get the noise of the steps."""
    shipped = Path(diffusion_blend.__path__[0]) / "miniature/weights"
    second: dict[float | None, torch.Tensor] = {}
    for eta in (None, 0.0, 1.0):
        settings = Settings(["a red circle"], steps=3, trajectories=1, guidance=1.0, device="cpu", eta=eta)
        pipe = load_pipeline(str(shipped / "base"), settings)
        adapter = read_adapter("a", shipped / "adapters/softness.safetensors", pipe.unet)
        with torch.no_grad():
            calls = next(record(pipe, [adapter], [([1.0], 1.0)], settings))[1]
        second[eta] = calls[1].args[0]
    assert torch.equal(second[None], second[0.0])
    assert float((second[1.0] - second[0.0]).abs().max()) > 0.1


def test_settings_are_refused_before_the_base_is_loaded(
    base: Base, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    def loaded(*_: Any) -> None:
        raise AssertionError("the base was loaded")

    monkeypatch.setattr("diffusion_blend.pipelines.distillation.load_pipeline", loaded)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    output = tmp_path / "out.safetensors"
    cases = {
        "--learning_rate is 0.0": ["--learning_rate", "0"],
        "--learning_rate is -1.0": ["--learning_rate", "-1"],
        "--iterations is 0": ["--iterations", "0"],
        "--eta is 2.0": ["--eta", "2"],
        "--height is 12": ["--height", "12"],
        "holds no prompt": ["--prompts", str(empty)],
        "cannot be read as text": ["--prompts", str(tmp_path / "missing.txt")],
        "with one prompt a line as --prompts": ["--prompts", ""],
        "--prompts is for distil and cross": ["--method", "merge"],
        "kl_scale is 0": ["--kl_scale", "0"],
    }
    for words in cases.values():
        assert distil(base, output, *words) == 1
    said = capsys.readouterr().err
    assert all(words in said for words in cases), said
    assert not output.exists()
