"""Code that files name: where it would be loaded from, and whether the user agreed to run it."""
