"""LoRA files: reading, checking, and fitting them to a model."""
