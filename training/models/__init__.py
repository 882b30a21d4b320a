"""Models that can be trained: the protocol, diffusers networks, and loading them."""
