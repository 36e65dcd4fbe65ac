"""Seeded mutation of everything that lrexport reads, in processes with limits: ``make fuzz``, and a short slice as tests."""
