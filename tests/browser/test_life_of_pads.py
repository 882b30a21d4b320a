"""A change that fails ends its step of undo."""

from __future__ import annotations

from comfy_browser import FrontEnd

EXTENSION = "/extensions/diffusion-blend/pad"


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
