"""What holds for every test: its own IPC namespace, nothing left behind, and stacks when it hangs."""

pytest_plugins = [
    "plugins.isolation",
    "plugins.fixtures",
    "plugins.comparing",
    "plugins.leftovers",
    "plugins.hanging",
    "plugins.slow",
]
