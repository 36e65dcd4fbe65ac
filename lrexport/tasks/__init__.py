"""What a network's outputs are for: how they are scored."""
