"""Rank selection: what plans cost, and the best plan within a budget."""
