"""Passes over an exported graph that compute the same in a form that runtimes are faster at; one file each."""
