"""``accelerate launch -m diffusion_blend.training``: the train command on several processes."""

from __future__ import annotations

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
