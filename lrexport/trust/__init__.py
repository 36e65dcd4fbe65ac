"""Code that files name: where it comes from, and whether the user agreed to run it."""
