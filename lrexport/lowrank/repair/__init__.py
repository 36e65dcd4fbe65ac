"""Repair after folding: pairs refitted to what their dense layers put out."""
