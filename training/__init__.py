"""The trainer of reward adapters; it never imports ComfyUI."""
