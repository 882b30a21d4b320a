"""The demo: the miniature's adapters blended over the simplex, on one page."""
