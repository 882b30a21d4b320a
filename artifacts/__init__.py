"""Files that a run reads and leaves: atomic writes, CSV and text tables, pictures, tensors without pickle."""
