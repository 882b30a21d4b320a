"""The miniature as a base model for the trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .model import load_pipeline
from .sizes import SIZE

if TYPE_CHECKING:
    from ..training.models.diffusers_model import Base


def shipped() -> Base:
    """The shipped miniature model as the trainer takes a base, on a GPU where there is one.

    Raises:
        ValueError: no model is shipped.
    """
    from ..training.models.bases import base_from_pipeline

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return base_from_pipeline(load_pipeline(), "miniature", SIZE, device)
