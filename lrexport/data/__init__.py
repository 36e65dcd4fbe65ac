"""Images and labels: named datasets, folders, import paths; batches in memory or from disk; augmentation."""
