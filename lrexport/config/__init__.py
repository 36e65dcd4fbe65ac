"""What one compression is asked to do, and recipes: such choices as files."""
