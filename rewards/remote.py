"""A reward over HTTP: pictures and prompts go to a server, and scores come back.

The protocol is one request: ``POST`` with ``{"version": 1, "images": ["<base64 of a PNG>", ...], "prompts": ["...", ...]}`` as
JSON. The answer is status 200 and ``{"scores": [1.5, ...]}``, one number per picture. Another status may have
``{"error": "..."}``.
``docs/examples/reward_server`` has a server.

This file needs the standard library, torch and Pillow.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qs, urlsplit

import torch
from torch import Tensor

from ..artifacts.pictures import to_pil

VERSION = 1
HOSTS = "DIFFUSION_BLEND_REWARD_HOSTS"
"""Environment variable: other machines, separated by commas, to which pictures may be sent."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_LONGEST = 1e6  # seconds; a socket refuses an infinite limit
_LARGEST_ANSWER = 1 << 24  # bytes


@dataclass(frozen=True)
class RemoteReward:
    """Scores that a server computes.

    Attributes:
        url: the address, without the settings.
        batch: pictures in a request.
        timeout: seconds that one request may take.
        tries: requests for one batch until the reward fails.
        pause: seconds before the second try; each further pause is twice as long.
    """

    url: SplitResult
    batch: int = 16
    timeout: float = 300.0
    tries: int = 4
    pause: float = 0.5

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score images; see `protocol.Reward`.

        Raises:
            ConnectionError: the server did not answer in time, or could not be reached, in every try.
            ValueError: the server refused the request, sent the client elsewhere or answered with something else.
        """
        scores: list[float] = []
        for start in range(0, len(images), self.batch):
            part = slice(start, start + self.batch)
            scores += self._scores(images[part], list(prompts[part]))
        return torch.tensor(scores, dtype=torch.float64)

    def _scores(self, images: Tensor, prompts: list[str]) -> list[float]:
        pictures = [base64.b64encode(_png(image)).decode() for image in images]
        body = json.dumps({"version": VERSION, "images": pictures, "prompts": prompts}).encode()
        failure: Exception | None = None
        for attempt in range(self.tries):
            time.sleep(self.pause * 2 ** (attempt - 1) if attempt else 0)
            try:
                status, answer = self._post(body)
            except (OSError, http.client.HTTPException) as error:
                failure = error
                continue
            if status not in (429, 500, 502, 503, 504):
                return self._checked(status, answer, len(images))
            failure = ConnectionError(f"status {status}: {_words(answer)}")
        raise ConnectionError(f"{self.url.geturl()} gave no scores in {self.tries} tries; the last failure: {failure}")

    def _post(self, body: bytes) -> tuple[int, bytes]:
        kind = http.client.HTTPSConnection if self.url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self.url.hostname or "", self.url.port, timeout=self.timeout)
        try:
            target = (self.url.path or "/") + (f"?{self.url.query}" if self.url.query else "")
            connection.request("POST", target, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read(_LARGEST_ANSWER)
        finally:
            connection.close()

    def _checked(self, status: int, answer: bytes, count: int) -> list[float]:
        where = self.url.geturl()
        if 300 <= status < 400:
            raise ValueError(
                f"{where} answered {status}, a redirect: redirects are not followed; give the final address"
            )
        if status != 200:
            raise ValueError(f"{where} answered {status}: {_words(answer)}")
        try:
            scores = json.loads(answer)["scores"]
            numbers = [float(score) for score in scores]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{where} answered {answer[:80]!r}: it must answer {{"scores": [...]}} ({error})'
            ) from error
        if len(numbers) != count:
            raise ValueError(f"{where} gave {len(numbers)} scores for {count} pictures")
        return numbers


def remote_reward(name: str) -> RemoteReward:
    """A reward from its address.

    Args:
        name: ``http://host:port/path``; behind a ``#`` its settings: ``#batch=8&timeout=600&tries=3``.

    Raises:
        ValueError: an address without a host, on another machine that the environment does not name, or with settings that
            are unknown, too small or too large.
    """
    url = urlsplit(name)
    settings = {key: values[-1] for key, values in parse_qs(url.fragment).items()}
    unknown = set(settings) - {"batch", "timeout", "tries"}
    if unknown:
        raise ValueError(f"reward {name!r}: unknown setting {sorted(unknown)[0]!r}: choose from batch, timeout, tries")
    try:
        batch, tries = int(settings.get("batch", 16)), int(settings.get("tries", 4))
        timeout, port = float(settings.get("timeout", 300)), url.port
    except ValueError as error:
        raise ValueError(f"reward {name!r}: {error}") from error
    if batch < 1 or tries < 1 or not timeout > 0 or (port is not None and port < 1):
        raise ValueError(f"reward {name!r}: batch, tries, timeout and the port must be above 0")
    if timeout > _LONGEST:
        raise ValueError(f"reward {name!r}: timeout must be at most {_LONGEST:g} seconds")
    if url.username or url.password:
        raise ValueError("a reward's address must not hold a name or password, because it is stored in adapter files")
    _check_host(name, url.hostname)
    return RemoteReward(url._replace(fragment=""), batch, timeout, tries)


def _check_host(name: str, host: str | None) -> None:
    if not host:
        raise ValueError(f"reward {name!r}: no host in the address")
    allowed = {entry.strip().lower() for entry in os.environ.get(HOSTS, "").split(",")}
    if host not in LOOPBACK and host not in allowed:
        raise ValueError(
            f"reward {name!r}: pictures and prompts would be sent to {host}; if you want that, set {HOSTS}={host} in the "
            "environment"
        )


def _png(image: Tensor) -> bytes:
    content = io.BytesIO()
    to_pil(image).save(content, format="PNG", compress_level=1)
    return content.getvalue()


def _words(answer: bytes) -> str:
    """The server's own explanation, at most 200 characters."""
    try:
        return str(json.loads(answer)["error"])[:200]
    except (ValueError, KeyError, TypeError):
        return repr(answer[:80])
