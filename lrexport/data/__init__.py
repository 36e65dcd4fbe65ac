"""Images and labels: named datasets, folders, import paths; in-memory batches and augmentation."""
