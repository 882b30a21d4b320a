"""Measurements: sweeps on any diffusers base, studies in a world with a known answer, and the demo."""
