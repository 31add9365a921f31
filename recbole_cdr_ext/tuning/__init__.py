"""Searching for settings: search spaces, trials, sweeps by Ray Tune, and what a sweep leaves to read."""
