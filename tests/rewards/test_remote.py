"""A reward over HTTP, against servers of these tests on this machine."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_blend.rewards.load import load_rewards
from diffusion_blend.rewards.protocol import score
from diffusion_blend.rewards.remote import HOSTS, remote_reward

IMAGES = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PROMPTS = [f"picture {i}" for i in range(5)]
Answer = Callable[[int, dict[str, Any]], tuple[int, Any]]


def example() -> Any:
    path = Path(__file__).parents[2] / "docs" / "examples" / "reward_server" / "server.py"
    spec = importlib.util.spec_from_file_location("example_reward_server", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def serve() -> Iterator[Callable[[Any], str]]:
    """Starts servers; returns their addresses."""
    running = []

    def start(handler: Any) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def handler_of(answer: Answer, seen: list[dict[str, Any]]) -> Any:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, content = answer(len(seen), seen[-1])
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", "http://203.0.113.1/")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def test_the_example_server_scores_what_the_pictures_show(serve: Any) -> None:
    url = serve(example().Handler) + "#batch=2"
    rewards = load_rewards([url], {}, torch.device("cpu"), allow_download=False)
    found = score(rewards, IMAGES, PROMPTS)[url]
    stored = (IMAGES * 255).round() / 255  # pictures travel with 8 bits
    wanted = 10 * (stored[:, 0] - stored[:, 1:].mean(1)).mean((1, 2))
    torch.testing.assert_close(found, wanted.double(), rtol=1e-5, atol=1e-5)


def test_batches_prompts_and_a_second_try(serve: Any) -> None:
    seen: list[dict[str, Any]] = []

    def answer(number: int, asked: dict[str, Any]) -> tuple[int, Any]:
        return (503, {"error": "warming up"}) if number == 1 else (200, {"scores": [len(p) for p in asked["prompts"]]})

    reward = remote_reward(serve(handler_of(answer, seen)) + "#batch=3&tries=2")
    assert reward(IMAGES, PROMPTS).tolist() == [len(prompt) for prompt in PROMPTS]
    assert [asked["prompts"] for asked in seen] == [PROMPTS[:3], PROMPTS[:3], PROMPTS[3:]]
    assert all(asked["version"] == 1 for asked in seen)


@pytest.mark.parametrize(
    ("answer", "kind", "message", "requests"),
    [
        ((500, {"error": "out of memory"}), ConnectionError, "in 2 tries.*status 500: out of memory", 2),
        ((400, {"error": "no such model"}), ValueError, "answered 400: no such model", 1),
        ((302, b""), ValueError, "redirects are not followed", 1),
        ((200, {"scores": [1.0]}), ValueError, "1 scores for 5 pictures", 1),
        ((200, b"<html>"), ValueError, "it must answer", 1),
        ((200, {"scores": [None] * 5}), ValueError, "it must answer", 1),
    ],
)
def test_answers_that_are_no_scores(answer: Any, kind: Any, message: str, requests: int, serve: Any) -> None:
    seen: list[dict[str, Any]] = []
    reward = remote_reward(serve(handler_of(lambda *_: answer, seen)) + "#tries=2")
    with pytest.raises(kind, match=message):
        reward(IMAGES, PROMPTS)
    assert len(seen) == requests


def test_a_server_that_hangs_is_given_up(serve: Any) -> None:
    released = threading.Event()

    def answer(*_: Any) -> tuple[int, Any]:
        released.wait(10)
        return 200, {"scores": [0.0] * 5}

    reward = remote_reward(serve(handler_of(answer, [])) + "#timeout=0.2&tries=1")
    with pytest.raises(ConnectionError, match="timed out"):
        reward(IMAGES, PROMPTS)
    released.set()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("http://judge.example/", f"set {HOSTS}=judge.example"),
        ("http://127.0.0.1.judge.example/", f"set {HOSTS}="),
        ("http:///score", "no host"),
        ("http://127.0.0.1:8901/#size=2", "unknown setting 'size'"),
        ("http://127.0.0.1:8901/#batch=0", "above 0"),
        ("http://127.0.0.1:8901/#timeout=nan", "above 0"),
        ("http://127.0.0.1:8901/#timeout=inf", "at most 1e\\+06 seconds"),
        ("http://127.0.0.1:8901/#batch=x", "invalid literal"),
        ("http://me:secret@127.0.0.1/", "must not hold a name or password"),
    ],
)
def test_addresses_that_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_rewards([name], {}, torch.device("cpu"), allow_download=False)


def test_another_machine_is_the_users_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOSTS, "judge.example, other.example")
    assert remote_reward("https://judge.example/score").url.hostname == "judge.example"
