"""The sweep: methods over preferences, prompts and seeds, with tables and figures."""
