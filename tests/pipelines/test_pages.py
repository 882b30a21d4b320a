"""The Python lines of README and docs/python.md run as they stand, on tiny pipelines and without a GPU."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from sweeps import write_adapter
from tiny_pipelines import save_tiny_sd, save_tiny_sdxl

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("page", "model", "save", "pictures"),
    [
        ("README.md", "stable-diffusion-v1-5/stable-diffusion-v1-5", save_tiny_sd, []),
        ("docs/python.md", "stabilityai/stable-diffusion-xl-base-1.0", save_tiny_sdxl, ["0.0", "0.3", "0.7", "1.0"]),
    ],
)
def test_the_lines_of_a_page_run(
    page: str, model: str, save: Callable[[Path], Path], pictures: list[str], tmp_path: Path
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    tiny = save(tmp_path / "tiny")
    for seed, name in enumerate(("aesthetic", "text")):
        write_adapter(tmp_path, tiny, name, seed)
    # A machine of the tests has neither the model nor a GPU, and the tiny model's own size is too small for its pipeline.
    here_for = {f'"{model}"': repr(str(tiny)), '.to("cuda")': "", "weights=[": "height=16, width=16, weights=["}
    for line, here in {**here_for, "torch.float16": "torch.float32"}.items():
        assert code.count(line) == 1 or line == "torch.float16"
        code = code.replace(line, here)
    script = tmp_path / "page.py"
    script.write_text(code + "\nassert image.size[0] > 0\n", encoding="utf-8")
    done = subprocess.run([sys.executable, "-P", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(file.stem for file in tmp_path.glob("*.png")) == pictures
    assert len({Image.open(file).tobytes() for file in tmp_path.glob("*.png")}) == len(pictures)
