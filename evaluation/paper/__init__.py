"""The experiments of the Diffusion Blend paper: their settings, their costs, and tables in the paper's form."""
