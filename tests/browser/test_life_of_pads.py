"""A pad that fails stops no other one. A node that leaves the graph and enters again is as it was before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import preference_pad
import pytest
from comfy_browser import FrontEnd
from duel_page import FILES, MAKE, NODE, Duel, learned
from make_server_models import LORAS

EXTENSION = "/extensions/diffusion-blend/pad"
ADD_BROKEN = f"""async () => {{
    const {{ keepFresh }} = await import('{EXTENSION}/live.js')
    const refresh = () => {{ window.refreshed = (window.refreshed ?? 0) + 1; throw new Error('broken on purpose') }}
    window.broken = {{ node: {{ id: -5 }}, element: document.createElement('div'), refresh }}
    keepFresh(window.broken)
}}"""
TAKE_BROKEN = f"async () => (await import('{EXTENSION}/live.js')).retire(window.broken)"
MALFORMED: list[Any] = [
    {"votes": ""},
    {"names": None},
    [1, 2],
    "text",
    learned(3) | {"points": [[1, 0]]},
    learned(3) | {"sides": [[None], []]},
    learned(3) | {"best": {"weights": [1, 0, 0]}},
]
PROPERTY = "diffusion_blend_duel"
RUN_FOR_EVER = "() => { window.realQueue = app.queuePrompt; app.queuePrompt = async () => true }"
STOP = """async () => (await import('/scripts/api.js')).api.dispatchEvent(
    new CustomEvent('execution_interrupted', { detail: { prompt_id: 'none', node_id: '1', node_type: '', executed: [] } }))"""
TAKE_OUT_AND_PUT_BACK = f"""() => {{
    const view = ({NODE})('PreferenceDuelView'), duel = ({NODE})('PreferenceDuel'), {{ graph }} = view
    graph.remove(view)
    graph.add(view)
    duel.connect(3, view, view.findInputSlot('duel'))
}}"""


@pytest.fixture
def broken(front: FrontEnd) -> Iterator[None]:
    """A pad that always fails, before all others."""
    front.page.evaluate(ADD_BROKEN)
    yield
    front.page.evaluate(TAKE_BROKEN)


def test_a_pad_that_fails_says_so_once_and_stops_no_other(front: FrontEnd, broken: None) -> None:
    pad = preference_pad.make(front, LORAS[:2])
    pad.set_number("weight_1", 0.0)
    pad.wait("Math.abs(look.weights[0] - 270) < 0.01")
    before = front.page.evaluate("() => refreshed")
    front.page.wait_for_function("(before) => refreshed > before + 1", arg=before)
    assert [error for error in front.errors if "broken on purpose" in error] == front.errors
    assert len(front.errors) == 1
    front.errors.clear()


@pytest.mark.parametrize("saved", MALFORMED)
def test_a_pair_of_another_shape_in_a_workflow_is_passed_over(front: FrontEnd, saved: Any) -> None:
    node = front.page.evaluate(MAKE, [FILES[:3], saved])
    front.fit()
    pad = preference_pad.Pad(front, node)
    duel = Duel(front)
    duel.wait("stale")
    pad.set_number("weight_1", 0.0)
    pad.wait(
        "look.labels.length === 3 && Math.abs(look.weights[0] - 188) < 0.01"
    )  # the middle between the second and the third


def test_a_pair_that_is_whole_is_shown(front: FrontEnd) -> None:
    front.page.evaluate(MAKE, [FILES[:3], learned(3)])
    front.fit()
    Duel(front).wait("choose")


@pytest.fixture
def duel(front: FrontEnd) -> Iterator[Duel]:
    """A view whose runs never end by themselves."""
    front.page.evaluate(MAKE, [FILES[:3], None])
    front.fit()
    front.page.evaluate(RUN_FOR_EVER)
    duel = Duel(front)
    duel.wait("stale")
    yield duel
    front.page.evaluate("() => { app.queuePrompt = realQueue }")


def start_a_run(duel: Duel) -> None:
    duel.page.evaluate("() => document.querySelector('.diffusion-blend-duel [data-part=run]').click()")
    duel.wait("waiting")


def test_a_view_that_came_back_hears_the_end_of_its_run(duel: Duel) -> None:
    duel.page.evaluate(TAKE_OUT_AND_PUT_BACK)
    duel.front.settle()
    start_a_run(duel)
    duel.page.evaluate(STOP)
    duel.wait("stale")


def test_a_view_that_was_away_at_the_end_of_its_run_waits_no_more(duel: Duel) -> None:
    start_a_run(duel)
    duel.page.evaluate(TAKE_OUT_AND_PUT_BACK)
    duel.wait("stale")


def test_a_change_that_fails_ends_its_step_of_undo(front: FrontEnd) -> None:
    steps = front.page.evaluate(
        f"""async () => {{
            const {{ changing }} = await import('{EXTENSION}/undo.js')
            const steps = [], {{ canvas }} = app
            const [before, after] = [canvas.emitBeforeChange, canvas.emitAfterChange]
            canvas.emitBeforeChange = () => steps.push('before')
            canvas.emitAfterChange = () => steps.push('after')
            try {{
                steps.push(changing(() => 5))
                changing(() => {{ throw new Error('on purpose') }})
            }} catch (error) {{
                steps.push(error.message)
            }} finally {{
                Object.assign(canvas, {{ emitBeforeChange: before, emitAfterChange: after }})
            }}
            return steps
        }}"""
    )
    assert steps == ["before", "after", 5, "before", "after", "on purpose"]
