"""The pad's geometry, run where it ships, against closed forms and brute force."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from comfy_server import FOLDER, ComfyServer
from playwright.sync_api import Browser, Page

MODULE = f"/extensions/{FOLDER}/pad/coordinates.js"
TRIANGLE = [[74.0, 160.0], [226.0, 160.0], [150.0, 28.0]]
SQUARE = [[84.0, 28.0], [216.0, 28.0], [216.0, 160.0], [84.0, 160.0]]
PENTAGON = [[float(np.cos(a)), float(np.sin(a))] for a in 2 * np.pi * np.arange(5) / 5]


@pytest.fixture(scope="module")
def page(browser: Browser, server: ComfyServer) -> Iterator[Page]:
    """A page of the server without the front end: the module needs none."""
    opened = browser.new_page()
    opened.goto(server.url + "/system_stats")
    yield opened
    opened.close()


def call(page: Page, name: str, *batches: Any) -> np.ndarray:
    """A function of the module on every tuple of arguments."""
    return np.array(
        page.evaluate(
            "async ([module, name, calls]) => { const { [name]: f } = await import(module); return calls.map((c) => f(...c)) }",
            [MODULE, name, list(batches)],
        )
    )


def inside(corners: list[list[float]], seed: int, count: int = 200) -> np.ndarray:
    """Random points of a polygon, float[count, 2]."""
    return np.random.default_rng(seed).dirichlet(np.ones(len(corners)), count) @ np.array(corners)


def test_triangle_is_barycentric(page: Page) -> None:
    points = inside(TRIANGLE, 1)
    system = np.vstack([np.array(TRIANGLE).T, np.ones(3)])
    wanted = np.linalg.solve(system, np.vstack([points.T, np.ones(len(points))])).T
    got = call(page, "weightsAt", *([TRIANGLE, point.tolist()] for point in points))
    np.testing.assert_allclose(got, wanted, atol=1e-12)


def test_square_is_bilinear(page: Page) -> None:
    points = inside(SQUARE, 2)
    u, v = (points[:, 0] - 84) / 132, (points[:, 1] - 28) / 132
    wanted = np.stack([(1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v], axis=1)
    got = call(page, "weightsAt", *([SQUARE, point.tolist()] for point in points))
    np.testing.assert_allclose(got, wanted, atol=1e-12)


@pytest.mark.parametrize("corners", [TRIANGLE, SQUARE, PENTAGON, PENTAGON[::-1]], ids=["3", "4", "5", "5 reversed"])
def test_generalised_barycentric_laws(page: Page, corners: list[list[float]]) -> None:
    """Sum 1, none negative, the weighted corners give the point back; a corner is itself; an edge uses its two ends."""
    points = inside(corners, 3)
    got = call(page, "weightsAt", *([corners, point.tolist()] for point in points))
    assert got.min() >= 0
    np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(got @ np.array(corners), points, atol=1e-9)
    back = call(page, "pointOf", *([corners, weights.tolist()] for weights in got))
    np.testing.assert_allclose(back, points, atol=1e-9)
    at_corners = call(page, "weightsAt", *([corners, corner] for corner in corners))
    np.testing.assert_allclose(at_corners, np.eye(len(corners)), atol=1e-12)
    ends = np.array([corners[0], corners[1]])
    on_edge = call(page, "weightsAt", [corners, (0.25 * ends[0] + 0.75 * ends[1]).tolist()])[0]
    np.testing.assert_allclose(on_edge, [0.25, 0.75] + [0] * (len(corners) - 2), atol=1e-12)


@pytest.mark.parametrize("corners", [TRIANGLE, SQUARE, SQUARE[:2]], ids=["triangle", "square", "line"])
def test_clamp_is_the_nearest_point(page: Page, corners: list[list[float]]) -> None:
    """Against a dense sample of the polygon itself."""
    points = np.random.default_rng(4).uniform(-50, 350, (40, 2))
    got = call(page, "clampTo", *([corners, point.tolist()] for point in points))
    steps = np.linspace(0, 1, 2001)[:, None]
    ends = np.array(corners)
    border = np.concatenate([(1 - steps) * ends[i] + steps * ends[(i + 1) % len(ends)] for i in range(len(ends))])
    dense = np.concatenate([border, inside(corners, 5, 4000), got])
    nearest = np.linalg.norm(dense[None] - points[:, None], axis=2).min(axis=1)
    np.testing.assert_allclose(np.linalg.norm(got - points, axis=1), nearest, atol=1e-9)
    assert np.linalg.norm(border[None] - got[:, None], axis=2).min() < 1  # on the border itself where it was outside
    kept = inside(corners, 6, 20)
    np.testing.assert_allclose(call(page, "clampTo", *([corners, p.tolist()] for p in kept)), kept, atol=1e-9)


def test_hundredths_sum_to_one(page: Page) -> None:
    weights = np.random.default_rng(7).dirichlet(np.ones(4), 300)
    got = call(page, "toHundredths", *([row.tolist()] for row in weights))
    hundredths = got * 100
    np.testing.assert_allclose(hundredths, hundredths.round(), atol=1e-9)
    assert (hundredths.round().sum(axis=1) == 100).all()
    assert np.abs(got - weights).max() < 0.01
    np.testing.assert_allclose(call(page, "toHundredths", [[0.29, 0.71]])[0], [0.29, 0.71], atol=1e-15)


def test_no_weight_is_no_point(page: Page) -> None:
    assert call(page, "pointOf", [TRIANGLE, [0, 0, 0]])[0] is None
