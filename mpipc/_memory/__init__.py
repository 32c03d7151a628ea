"""Shared memory: carved up for Value and Array, and by name for SharedMemory."""
