"""CPython's multiprocessing tests with the start method spawn, as a module that the children can import."""

from test import _test_multiprocessing

_test_multiprocessing.install_tests_in_module_dict(globals(), "spawn")
