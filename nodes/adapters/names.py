"""Names from files: they are shown on nodes, written on sheets, and stored in metadata."""

from __future__ import annotations

import unicodedata

LONGEST = 60
"""Characters. A longer name does not fit on any label."""


def cleaned_name(name: str) -> str:
    """Return a name as one line of visible characters.

    Control characters, marks of the text's direction and other invisible characters are left out. White space becomes one blank.

    Args:
        name: from a file.

    Returns:
        At most `LONGEST` characters; empty where nothing visible is left.
    """
    spaced = " ".join(name.split())
    visible = "".join(letter for letter in spaced if unicodedata.category(letter)[0] != "C").strip()
    return visible if len(visible) <= LONGEST else visible[: LONGEST - 3].rstrip() + "..."
