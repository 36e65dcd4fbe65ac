"""Runs: their record and state; opening, resuming and loading them."""
