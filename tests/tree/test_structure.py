"""The tree's laws: which package may import which, read from the source."""

import ast
import sys
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "artifacts": set(),
    "blending": set(),
    "rewards": {"artifacts", "preference_learning"},
    "preference_learning": set(),
    "nodes": {"blending", "miniature", "preference_learning", "rewards"},
    "training": {"artifacts", "blending", "pipelines", "rewards"},
    "miniature": {"artifacts", "blending", "pipelines", "rewards", "training"},
    "pipelines": {"artifacts", "blending"},
    "evaluation": {"artifacts", "blending", "rewards", "training", "miniature", "pipelines", "preference_learning"},
}
# Rewards without a model import only these libraries, which every ComfyUI has.
LIGHT = ("catalogue", "load", "pixels", "protocol", "sources")


def imports(path):
    """Return (level, module) of every import statement in a file, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def package_of(path, level, module):
    """Return the package of this project that an import reaches, or None."""
    if level == 0:
        return "diffusion_blend" if module.split(".")[0] == "diffusion_blend" else None
    return reached_parts(path, level, module)[0]


def reached_parts(path, level, module):
    """Return the target of a relative import, from the root."""
    parts = path.relative_to(ROOT).parts[:-1]
    return (*parts[: len(parts) - level + 1], *module.split("."))


def at_start(path):
    """Return (level, module) of the imports that run when a file is imported, so without those in functions or TYPE_CHECKING."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def offences(package, may):
    for path in sorted((ROOT / package).rglob("*.py")):
        for level, module in imports(path):
            reached = package_of(path, level, module)
            if reached is not None and reached != package and reached not in may:
                yield f"{path.relative_to(ROOT)} imports {'.' * level}{module}"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package):
    assert list(offences(package, MAY_IMPORT[package])) == []


def test_the_law_can_be_broken():
    assert list(offences("nodes", set())), "nodes imports blending, so forbidding that must show"


def test_the_start_of_comfyui_imports_the_list_of_rewards_and_no_reward():
    early = {
        ".".join(reached_parts(path, level, module))
        for path in (ROOT / "nodes").rglob("*.py")
        for level, module in at_start(path)
        if level and package_of(path, level, module) == "rewards"
    }
    assert early == {"rewards.catalogue"}


@pytest.mark.parametrize("file", ["rewards/catalogue.py", "miniature/reward_names.py"])
def test_lists_of_rewards_need_the_standard_library_only(file):
    assert {module.split(".")[0] for _, module in imports(ROOT / file)} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("name", LIGHT)
def test_rewards_without_a_model_need_only_what_the_host_ships(name):
    outside = {module.split(".")[0] for level, module in at_start(ROOT / "rewards" / f"{name}.py") if level == 0}
    assert outside <= {"torch", "numpy", "PIL", *sys.stdlib_module_names}


def test_blending_needs_torch_and_the_standard_library_only():
    outside = {
        module.split(".")[0]
        for path in (ROOT / "blending").rglob("*.py")
        for level, module in imports(path)
        if level == 0
    }
    assert outside <= {"torch", *sys.stdlib_module_names}


def test_preference_learning_needs_numpy_and_scipy_only():
    outside = {
        module.split(".")[0]
        for path in (ROOT / "preference_learning").rglob("*.py")
        for level, module in imports(path)
        if level == 0
    }
    assert outside <= {"numpy", "scipy", *sys.stdlib_module_names}


def test_the_start_of_comfyui_imports_nothing_that_learns():
    early = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in (ROOT / "nodes").rglob("*.py")
        for level, module in at_start(path)
        if level and package_of(path, level, module) == "preference_learning"
    }
    assert early == set()


def test_the_nodes_take_only_what_is_plain_torch_from_the_miniature():
    reached = {
        ".".join(reached_parts(path, level, module))
        for path in (ROOT / "nodes").rglob("*.py")
        for level, module in at_start(path)
        if level and package_of(path, level, module) == "miniature"
    }
    assert reached == {"miniature.comfy_keys", "miniature.reward_names", "miniature.sizes"}


@pytest.mark.parametrize("package", sorted(set(MAY_IMPORT) - {"nodes"}))
def test_only_the_nodes_know_the_host(package):
    host = {"comfy", "comfy_api", "comfy_extras", "nodes", "folder_paths", "execution", "server", "latent_preview"}
    found = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in (ROOT / package).rglob("*.py")
        for level, module in imports(path)
        if level == 0 and module.split(".")[0] in host
    }
    assert found == set()


def test_the_wheel_holds_every_shipped_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [file.parent for package in MAY_IMPORT for file in (ROOT / package).rglob("__init__.py")]
    assert sorted(listed) == sorted(
        ["diffusion_blend", *(".".join(("diffusion_blend", *folder.relative_to(ROOT).parts)) for folder in found)]
    )


def test_the_host_finds_one_folder_of_templates() -> None:
    """ComfyUI serves templates from the first of these names that a pack has (app/custom_node_manager.py)."""
    names = ("example_workflows", "example", "examples", "workflow", "workflows")
    assert [name for name in names if (ROOT / name).exists()] == ["workflows"]
