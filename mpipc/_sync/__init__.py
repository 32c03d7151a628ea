"""Locks, semaphores, events, conditions, barriers; and the properties of a Value."""
