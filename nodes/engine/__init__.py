"""The mechanisms of the nodes: a blended sampling run, MSDDA, the probe, scores, metadata, notices."""
