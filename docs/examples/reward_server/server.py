"""An example server of a reward over HTTP: ``python server.py [PORT]``, then train with ``http://127.0.0.1:8901/``.

Replace `score` by a judge of your own, for example a vision-language model or people's votes. Needs Pillow and numpy.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image


def score(picture: Image.Image, prompt: str) -> float:  # noqa: ARG001  (a real judge reads the prompt)
    """Prefer red pictures, whatever the prompt: ten times the excess of red over green and blue."""
    red, green, blue = (np.asarray(picture.convert("RGB"), dtype=float) / 255).mean((0, 1))
    return float(10 * (red - (green + blue) / 2))


class Handler(BaseHTTPRequestHandler):
    """Answers ``{"images": [base64 PNG], "prompts": [...]}`` with ``{"scores": [...]}``."""

    def do_POST(self) -> None:
        try:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            pictures = [Image.open(io.BytesIO(base64.b64decode(text))) for text in asked["images"]]
            scores = [score(picture, prompt) for picture, prompt in zip(pictures, asked["prompts"], strict=True)]
            self.answer(200, {"scores": scores})
        except (ValueError, KeyError, OSError) as error:
            self.answer(400, {"error": str(error)})

    def answer(self, status: int, content: dict[str, object]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8901
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
