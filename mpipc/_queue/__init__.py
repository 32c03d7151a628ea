"""Objects in and out of a message queue."""
