"""A tiny text-to-image world that needs no download: renderer, parser, model, rewards, weights."""
