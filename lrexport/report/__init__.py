"""What people read: tables of a record. Nothing here imports torch."""
