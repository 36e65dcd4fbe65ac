"""Which layers can be factorised, and why the others cannot."""
