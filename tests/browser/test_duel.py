"""Votes between two pictures in the real front end: every vote counts once, the queue waits for it, and nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from comfy_browser import FrontEnd
from comfy_server import CHECKOUT
from duel_page import NODE, VIEW, Duel, load
from workflow_sources import TITLES


@pytest.fixture
def duel(front: FrontEnd) -> Iterator[Duel]:
    yield load(front)


def test_ten_votes_by_mouse_and_keys_then_take_it(duel: Duel) -> None:
    before = duel.runs()
    for key in "120x1":
        duel.press(key)
    for part in ("side-1", "side-2", "equal", "bad", "side-1"):
        duel.click(part)
    assert duel.outcomes == "><=x>><=x>"
    assert duel.runs() == before + 10, "one run a vote"
    assert "Backspace" in (duel.part("undo").get_attribute("title") or "")
    duel.part("take").click()
    taken = [duel.read(f"weight_{number}", "PreferenceWeights") for number in (1, 2, 3, 4)]
    best = duel.page.evaluate(f"() => ({NODE})('PreferenceDuelView').properties.diffusion_blend_duel.best")
    assert taken == [*best["weights"], 0]
    assert duel.read("kl_scale", "PreferenceWeights") == best["kl_scale"]
    assert duel.part("best-text").inner_text().startswith("Best so far")


def test_undo_shows_the_pair_again_without_a_run(duel: Duel) -> None:
    pictures = duel.part("side-1").locator("img").get_attribute("src")
    duel.press("1")
    duel.press("2")
    runs = duel.runs()
    for left in (1, 0):
        duel.page.keyboard.press("Backspace")
        duel.wait("choose")
        assert len(duel.read().splitlines()) == left
    assert duel.part("side-1").locator("img").get_attribute("src") == pictures
    assert duel.runs() == runs
    assert duel.part("undo").is_disabled()
    assert duel.page.evaluate(f"() => Boolean(({NODE})('PreferenceDuelView'))"), "Backspace is not for the node"


def test_no_vote_is_taken_while_the_next_pair_is_made(duel: Duel) -> None:
    """Ten hasty keys: one vote, one run."""
    runs = duel.runs()
    duel.page.locator(VIEW).focus()
    duel.page.evaluate(
        """(view) => {
            for (let i = 0; i < 10; i++)
                document.querySelector(view).dispatchEvent(new KeyboardEvent('keydown', { key: '1', bubbles: true }))
        }""",
        VIEW,
    )
    assert len(duel.read().splitlines()) == 1
    duel.wait("choose")
    assert duel.runs() == runs + 1
    assert duel.waiting() == 0


def test_a_run_that_is_deleted_from_the_queue_is_not_waited_for(duel: Duel) -> None:
    duel.write("steps", 3000, "BlendedKSampler")
    duel.page.evaluate("() => void app.queuePrompt(0)")  # a long run, behind which the next one waits
    duel.page.wait_for_function("async () => (await (await app.api.fetchApi('/queue')).json()).queue_running.length")
    duel.write("steps", 1, "BlendedKSampler")
    duel.part("side-1").click()
    duel.wait("waiting")
    waiting = "async () => (await (await app.api.fetchApi('/queue')).json()).queue_pending[0]?.[1]"
    run = duel.page.wait_for_function(waiting).json_value()
    duel.page.evaluate("(id) => app.api.deleteItem('queue', id)", run)
    duel.wait("stale")
    duel.page.evaluate("() => app.api.interrupt()")
    duel.runs()
    duel.part("run").click()
    duel.wait("choose")


@pytest.mark.full
def test_without_the_switch_a_vote_waits_for_run(duel: Duel) -> None:
    duel.part("auto").click()
    runs = duel.runs()
    duel.part("side-2").click()
    duel.wait("stale")
    duel.page.wait_for_timeout(500)
    assert (duel.outcomes, duel.runs(), duel.waiting()) == ("<", runs, 0)
    assert duel.part("side-1").is_disabled()
    duel.part("run").click()
    duel.wait("choose")
    assert duel.runs() == runs + 1


@pytest.mark.full
def test_an_interrupted_run_leaves_the_vote_and_nothing_in_the_queue(duel: Duel) -> None:
    duel.write("steps", 300, "BlendedKSampler")
    duel.part("side-1").click()
    duel.wait("waiting")
    duel.page.wait_for_timeout(1500)
    duel.front.server.post("/interrupt", {})
    duel.wait("stale")
    assert (duel.outcomes, duel.waiting()) == (">", 0)
    duel.write("steps", 1, "BlendedKSampler")
    duel.part("run").click()
    duel.wait("choose")
    assert duel.outcomes == ">"
    duel.press("2")
    assert duel.outcomes == "><"


@pytest.mark.full
def test_a_reload_in_the_middle_keeps_votes_and_pair(duel: Duel) -> None:
    duel.press("1")
    duel.press("0")
    votes, runs = duel.read(), duel.runs()
    saved = duel.front.workflow()
    duel.front.open()
    duel.front.load(saved)
    duel.wait("choose")
    assert (duel.read(), duel.runs()) == (votes, runs)
    duel.press("2")
    assert duel.outcomes == ">=<"
    duel.front.errors.clear()  # the reload itself cuts the page's requests off


@pytest.mark.full
def test_again_from_here_adds_a_line_that_undo_takes_back(duel: Duel) -> None:
    duel.press("1")
    duel.part("narrow").click()
    duel.wait("choose")
    assert duel.read().splitlines()[-1].startswith("around ")
    duel.part("undo").click()
    duel.wait("choose")
    assert duel.outcomes == ">"


@pytest.mark.full
def test_two_tabs_vote_for_themselves(duel: Duel) -> None:
    duel.press("1")
    other = FrontEnd(duel.page.context.new_page(), duel.front.server)
    other.page.set_default_timeout(40_000)
    try:
        other.open()
        second = load(other)
        second.press("2")
        second.press("x")
        assert (duel.outcomes, second.outcomes) == (">", "<x")
        duel.press("0")
        assert (duel.outcomes, second.outcomes) == (">=", "<x")
    finally:
        other.page.close()


@pytest.mark.full
def test_typed_votes_run_without_the_view(duel: Duel) -> None:
    duel.write("votes", "1 2\n0")
    duel.wait("stale")
    duel.part("run").click()
    duel.wait("choose")
    assert duel.part("best-text").inner_text()
    duel.page.locator(VIEW).focus()
    duel.page.keyboard.press("Backspace")
    assert duel.read() == "1 2"
    duel.wait("choose")


@pytest.mark.full
def test_votes_in_app_mode(front: FrontEnd) -> None:
    """The view stands among the app's inputs, which the front end shows only to an app that has an output."""
    workflow = json.loads((CHECKOUT / "workflows" / f"{TITLES['find_my_taste_no_downloads']}.json").read_text())
    front.open_file(workflow | {"extra": workflow["extra"] | {"linearMode": True}}, "app")
    try:
        duel = Duel(front)
        duel.page.get_by_test_id("linear-widgets").locator(VIEW).wait_for(state="visible")
        duel.write("votes", "")
        duel.write("steps", 1, "BlendedKSampler")
        duel.write("batch_size", 1, "LoadMiniature")
        duel.wait("stale")
        duel.part("run").click()
        duel.wait("choose")
        duel.click("side-1")
        duel.press("2")
        duel.click("equal")
        assert duel.outcomes == "><="
        for side in ("side-1", "side-2"):
            picture = duel.part(side).locator("img").bounding_box()
            assert picture is not None and min(picture["width"], picture["height"]) > 100, picture
        view, panel = duel.page.locator(VIEW).bounding_box(), duel.page.get_by_test_id("linear-widgets").bounding_box()
        assert view is not None and panel is not None and view["width"] <= panel["width"]
        parts = ("best-text", "take", "narrow", "learned")
        boxes = [duel.part(name).bounding_box() for name in parts]
        assert all(box and box["x"] + box["width"] <= view["x"] + view["width"] for box in boxes), boxes
        duel.page.keyboard.press("Backspace")
        duel.wait("choose")
        assert duel.outcomes == "><"
    finally:
        front.page.evaluate("() => app.extensionManager.command.execute('Comfy.ToggleLinear')")
        front.page.locator(".lg-node, #graph-canvas").first.wait_for(state="visible")
