"""Runs: their record and state, how they are opened, resumed and loaded."""
