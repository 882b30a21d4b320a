"""Host tests: ComfyUI's own code in this process. One process can hold one host; make test runs one after the other."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Generator

import comfy_hosts
import pytest

hosts = comfy_hosts.find_hosts()
# Numbers and drawings that do not depend on the host's version.
ASK_NOTHING_OF_THE_HOST = {"test_duel", "test_sweep_points", "test_sweep_grid", "test_scores_best"}

if hosts:
    host = str(hosts[0])
    if host not in sys.path:
        sys.path.insert(0, host)
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
else:
    collect_ignore_glob = ["test_*.py"]
    if os.environ.get("CI") == "true":
        raise pytest.UsageError(comfy_hosts.HOW_TO_GET_ONE)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--one-case-in",
        type=int,
        default=1,
        help="of a test with many cases run the first, and one in this many of the others. The host's folder decides which, "
        "so that several hosts share the cases.",
    )


def pytest_report_header() -> str:
    if not hosts:
        return f"HOST TESTS SKIPPED: {comfy_hosts.HOW_TO_GET_ONE}"
    return f"ComfyUI {'.'.join(map(str, comfy_hosts.version(hosts[0])))} at {hosts[0]}"


def is_sampled(case: str, share: int) -> bool:
    """Return whether a further case of a test is among one in ``share``, by a checksum of its name and the host's folder."""
    return zlib.crc32(f"{hosts[0].name} {case}".encode()) % share == 0


def sample_cases(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the cases that ``--one-case-in`` leaves out."""
    share, seen, chosen, left_out = config.getoption("--one-case-in"), set(), [], []
    for item in items:
        test = item.nodeid.partition("[")[0]
        first = test not in seen
        seen.add(test)
        of_others = "/tests/host/" not in str(item.path)
        (chosen if of_others or first or is_sampled(item.nodeid, share) else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = chosen


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None]:
    for item in items:
        if "/tests/host/" in str(item.path):
            item.add_marker(pytest.mark.host)
            if item.path.stem in ASK_NOTHING_OF_THE_HOST:
                item.add_marker(pytest.mark.newest)
    yield  # pytest leaves out what -m asks it to
    sample_cases(config, items)


@pytest.fixture(autouse=True)
def no_gradients():
    """The host runs every node in inference mode."""
    if not hosts:
        yield
        return
    import torch

    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def loras_folder(tmp_path_factory):
    """A folder that the host lists as its only loras folder."""
    import folder_paths

    folder = tmp_path_factory.mktemp("loras")
    folder_paths.folder_names_and_paths["loras"] = ([str(folder)], {".safetensors", ".ckpt", ".pt", ".sft"})
    return folder


@pytest.fixture
def folder(loras_folder, worlds):
    """The loras folder. Files that a test writes there are removed afterwards, those of a new world excepted."""
    before = set(loras_folder.rglob("*"))
    yield loras_folder
    of_worlds = {loras_folder / file for world in worlds.made.values() for file in world.files}
    for path in sorted(set(loras_folder.rglob("*")) - before - of_worlds, reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.fixture(scope="session")
def worlds(loras_folder):
    """One `World` per architecture, made at its first use."""
    from comfy_world import World

    made: dict[str, World] = {}

    def world(kind: str) -> World:
        if kind not in made:
            made[kind] = World(kind, loras_folder)
        return made[kind]

    world.made = made
    return world


@pytest.fixture(params=["sd15", "sd3"])
def world(request, worlds):
    """The two usual worlds of the tests: a UNet, and a transformer with fused qkv."""
    return worlds(request.param)


@pytest.fixture(scope="module")
def small():
    """The miniature's MODEL and CLIP."""
    from diffusion_blend.nodes.miniature import LoadMiniature

    return LoadMiniature.execute(2).args[:2]


@pytest.fixture
def sd15(worlds):
    return worlds("sd15")


@pytest.fixture
def sd3(worlds):
    return worlds("sd3")
