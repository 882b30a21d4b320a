"""Names of files by which programs know them. This file imports nothing, so that commands refuse wrong names quickly."""

CROSS_END = ".cross.safetensors"
"""The ending of cross adapters' files, by which the nodes' preference pad knows them."""
