"""Data files of the wheel and the source distribution, by the patterns in pyproject.toml and MANIFEST.in."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[2]


def tracked() -> list[str]:
    return subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")


def test_the_wheel_holds_every_data_file_of_the_packages_and_every_yaml_file_that_docs_name() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    shipped = {
        str(file.relative_to(ROOT))
        for package, globs in patterns.items()
        for glob in globs
        for file in (ROOT / Path(*package.split(".")[1:])).glob(glob)
    }
    folders = (
        "artifacts",
        "blending",
        "nodes",
        "rewards",
        "training",
        "evaluation",
        "miniature",
        "pipelines",
        "configs",
    )
    data = {name for name in tracked() if name.split("/")[0] in folders and not name.endswith((".py", ".md"))}
    assert data - shipped == set()
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text() for page in pages)
    named = set(re.findall(r"\b(?:miniature|configs)/[\w/-]+\.yaml", text))
    assert named and named - shipped == set()
    assert "py.typed" in shipped


def test_the_source_distribution_has_docs_and_tests() -> None:
    grafted = re.findall(r"^graft (\S+)", (ROOT / "MANIFEST.in").read_text(), re.MULTILINE)
    assert {"docs", "tests"} <= set(grafted)
    assert [name for name in grafted if not (ROOT / name).is_dir()] == []


def test_pictures_of_the_readme_show_on_pypi() -> None:
    links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    base = "https://raw.githubusercontent.com/diffusion-blend/diffusion-blend/main/"
    assert links and all(link.startswith(base) and (ROOT / link.removeprefix(base)).exists() for link in links)
