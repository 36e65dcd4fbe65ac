"""Tools for any torch network: copying it, making it plain, tracing it, refusing networks that cannot be changed."""
