"""Rank selection: costs of plans, and the best plan for a goal."""
