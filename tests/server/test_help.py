"""Every node has a help page, and every text of every language is there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import make_locale_en
import pytest
from comfy_server import CHECKOUT, FOLDER, ComfyServer

DOCS = CHECKOUT / "web" / "docs"
LANGUAGES = sorted(path.name for path in (CHECKOUT / "locales").iterdir() if path.is_dir())
CONTRACT = json.loads((Path(__file__).with_name("object_info.json")).read_text())


def texts(node: dict[str, Any]) -> dict[str, Any]:
    """Where a translation of a node has texts: its structure with the texts themselves left out."""
    return {
        "node": sorted(node),
        "inputs": {name: sorted(parts) for name, parts in node["inputs"].items()},
        "outputs": {name: sorted(parts) for name, parts in node["outputs"].items()},
    }


def test_english_is_what_the_nodes_say(server: ComfyServer) -> None:
    written = json.loads(make_locale_en.TARGET.read_text(encoding="utf-8"))
    now = make_locale_en.english(server.get_json("/object_info"))
    assert written == now, f"run python tools/make_locale_en.py {server.url} against a running server"


def test_languages() -> None:
    assert {"en", "zh"} <= set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_covers_every_text(language: str) -> None:
    folder = CHECKOUT / "locales" / language
    english = json.loads(make_locale_en.TARGET.read_text(encoding="utf-8"))
    translated = json.loads((folder / "nodeDefs.json").read_text(encoding="utf-8"))
    assert sorted(english) == sorted(CONTRACT)
    assert {name: texts(node) for name, node in translated.items()} == {
        name: texts(node) for name, node in english.items()
    }
    said = re.findall(r'": "(.*)"', (folder / "nodeDefs.json").read_text(encoding="utf-8"))
    assert not [text for text in said if not text.strip()]
    # What the front end's message format would take for a link, a placeholder or a plural.
    assert not [text for text in said if re.search(r"[@{}|]", text)]
    keys = [
        json.loads((CHECKOUT / "locales" / code / "main.json").read_text(encoding="utf-8")) for code in (language, "en")
    ]
    assert sorted(keys[0]) == sorted(keys[1])
    assert all(sorted(keys[0][key]) == sorted(keys[1][key]) for key in keys[1])


def test_chinese_is_chinese() -> None:
    nodes = json.loads((CHECKOUT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    tooltips = [
        part["tooltip"] for node in nodes.values() for part in [*node["inputs"].values(), *node["outputs"].values()]
    ]
    assert all(re.search("[\u4e00-\u9fff]", text) for text in tooltips)


def test_the_server_gives_both_languages(server: ComfyServer) -> None:
    served = server.get_json("/i18n")
    for language in LANGUAGES:
        assert sorted(served[language]["nodeDefs"]) == sorted(CONTRACT)


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_help_page(server: ComfyServer, name: str) -> None:
    """The page is served, names every input, warns of mistakes, and its pictures exist."""
    page = server.get(f"/extensions/{FOLDER}/docs/{name}.md").decode()
    assert page.startswith(f"# {CONTRACT[name]['display_name']}\n")
    for entry in CONTRACT[name]["inputs"]:
        stem, number = re.fullmatch(r"(.*?)(\d*)", entry["name"]).groups()
        last = re.search(rf"`{re.escape(stem)}1` \.\.\. `{re.escape(stem)}(\d)`", page)
        in_series = bool(number) and last is not None and int(number) <= int(last.group(1))
        assert f"`{entry['name']}`" in page or in_series, f"{name}.md does not explain {entry['name']}"
    assert "## Common mistakes" in page
    for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page):
        assert server.get(f"/extensions/{FOLDER}/docs/{picture}").startswith(b"\x89PNG"), picture
    assert "](images/" in page


def test_no_help_page_without_a_node() -> None:
    assert sorted(path.stem for path in DOCS.glob("*.md")) == sorted(CONTRACT)


def test_the_script_is_offered(server: ComfyServer) -> None:
    assert f"/extensions/{FOLDER}/preference_pad.js" in server.get_json("/extensions")
