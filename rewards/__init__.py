"""Rewards: functions of images and prompts. `catalogue` lists them, `load` loads them by name."""
