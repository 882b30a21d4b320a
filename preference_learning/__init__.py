"""Learns a preference from votes between two pictures: numpy and scipy only, no host, no network, no state but the votes."""
