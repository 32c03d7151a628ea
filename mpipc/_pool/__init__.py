"""Who runs which task."""
