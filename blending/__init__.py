"""The method without a host: preferences, plans of gates and mix, the gated side path, the MSDDA step.

Torch and the standard library only. The idea is in `plans`: one denoising step is a few calls of one network, each with a
gate per adapter, and the predictions are summed with a coefficient each.
"""
