"""Reports for people: tables and pages from records. Nothing here imports torch."""
