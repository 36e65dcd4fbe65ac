"""Options of a compression, and recipes: options in files."""
