"""A network's own modules, in place of those that a clone of its MODEL has put in for its runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.utils

from ..host import Patcher


@contextmanager
def own_modules(model: Patcher) -> Iterator[None]:
    """Give a network its own modules back for a while.

    The clones of a MODEL share one network. A clone's object patches, such as compiled blocks, stay in it until another clone
    is loaded. Whoever looks at the network before that would take them for the network's own.

    Args:
        model: the host's ModelPatcher, any of the clones.
    """
    network, replaced = model.model, list[tuple[str, Any]]()
    try:
        for name, own in list(model.object_patches_backup.items()):
            replaced.append((name, comfy.utils.set_attr(network, name, own)))
        yield
    finally:
        for name, patch in reversed(replaced):
            comfy.utils.set_attr(network, name, patch)
