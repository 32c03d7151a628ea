"""What touches the standard library's own: its modules, its private names, its children."""
