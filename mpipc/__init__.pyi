# The names that __init__.py takes from the running interpreter's multiprocessing, for type checkers.
# tests/stdlib/test_api.py compares them.

from mpipc import broadcast as broadcast
from mpipc import connection as connection
from mpipc import context as context
from mpipc import dummy as dummy
from mpipc import executor as executor
from mpipc import forkserver as forkserver
from mpipc import heap as heap
from mpipc import log as log
from mpipc import managers as managers
from mpipc import pool as pool
from mpipc import popen_fork as popen_fork
from mpipc import popen_forkserver as popen_forkserver
from mpipc import popen_spawn_posix as popen_spawn_posix
from mpipc import process as process
from mpipc import queues as queues
from mpipc import reduction as reduction
from mpipc import resource_sharer as resource_sharer
from mpipc import resource_tracker as resource_tracker
from mpipc import shared_memory as shared_memory
from mpipc import sharedctypes as sharedctypes
from mpipc import spawn as spawn
from mpipc import synchronize as synchronize
from mpipc import util as util
from mpipc import work_queue as work_queue
from mpipc._pool.state import worker_state as worker_state
from mpipc._stdlib.install import install as install
from mpipc._stdlib.install import uninstall as uninstall
from mpipc._stdlib.shut_down import ShutDown as ShutDown
from mpipc.context import AuthenticationError as AuthenticationError
from mpipc.context import BufferTooShort as BufferTooShort
from mpipc.context import Process as Process
from mpipc.context import ProcessError as ProcessError
from mpipc.context import TimeoutError as TimeoutError
from mpipc.context import _default_context
from mpipc.exceptions import BrokenPoolError as BrokenPoolError
from mpipc.exceptions import MemoryLimitError as MemoryLimitError
from mpipc.exceptions import TaskTimeoutError as TaskTimeoutError
from mpipc.exceptions import WorkerLostError as WorkerLostError
from mpipc.executor import ProcessPoolExecutor as ProcessPoolExecutor
from mpipc.executor import get_reusable_executor as get_reusable_executor
from mpipc.process import active_children as active_children
from mpipc.process import current_process as current_process
from mpipc.process import parent_process as parent_process

__all__: list[str]
__version__: str
SUBDEBUG: int
SUBWARNING: int

Array = _default_context.Array
Barrier = _default_context.Barrier
BoundedSemaphore = _default_context.BoundedSemaphore
Broadcast = _default_context.Broadcast
Condition = _default_context.Condition
Event = _default_context.Event
JoinableQueue = _default_context.JoinableQueue
Lock = _default_context.Lock
Manager = _default_context.Manager
Pipe = _default_context.Pipe
Pool = _default_context.Pool
Queue = _default_context.Queue
RLock = _default_context.RLock
RWLock = _default_context.RWLock
RawArray = _default_context.RawArray
RawValue = _default_context.RawValue
Semaphore = _default_context.Semaphore
SimpleQueue = _default_context.SimpleQueue
Value = _default_context.Value
WorkQueue = _default_context.WorkQueue
allow_connection_pickling = _default_context.allow_connection_pickling
cpu_count = _default_context.cpu_count
freeze_support = _default_context.freeze_support
get_all_start_methods = _default_context.get_all_start_methods
get_context = _default_context.get_context
get_logger = _default_context.get_logger
get_start_method = _default_context.get_start_method
log_to_stderr = _default_context.log_to_stderr
reducer = reduction
set_executable = _default_context.set_executable
set_forkserver_preload = _default_context.set_forkserver_preload
set_start_method = _default_context.set_start_method
with_pickler = _default_context.with_pickler
