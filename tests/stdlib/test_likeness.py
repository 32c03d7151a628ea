"""isinstance() with multiprocessing's classes, for objects of mpipc's."""

from __future__ import annotations

import copy
import functools
import pickle
import unittest.mock
from multiprocessing import connection, queues, sharedctypes, synchronize
from typing import Any

import pytest
from support import run_script

import mpipc
import mpipc.queues
import mpipc.synchronize

MAKERS = {
    "Queue": queues.Queue,
    "JoinableQueue": queues.JoinableQueue,
    "SimpleQueue": queues.SimpleQueue,
    "Lock": synchronize.Lock,
    "RLock": synchronize.RLock,
    "Semaphore": synchronize.Semaphore,
    "BoundedSemaphore": synchronize.BoundedSemaphore,
    "Condition": synchronize.Condition,
    "Event": synchronize.Event,
}


@pytest.mark.parametrize("name", MAKERS)
def test_isinstance(name: str) -> None:
    obj, standard = getattr(mpipc, name)(), MAKERS[name]
    assert isinstance(obj, standard) and isinstance(obj, type(obj))
    others = {cls for cls in MAKERS.values() if not issubclass(standard, cls)}
    assert not any(isinstance(obj, other) for other in others)
    assert type(obj).__module__.startswith("mpipc.") and not issubclass(type(obj), standard), "as documented"


def test_isinstance_of_others() -> None:
    for lock in (mpipc.Lock(), mpipc.RLock(), mpipc.Semaphore(), mpipc.BoundedSemaphore()):
        assert isinstance(lock, synchronize.SemLock)
    assert isinstance(mpipc.BoundedSemaphore(), synchronize.Semaphore)
    assert isinstance(mpipc.JoinableQueue(), queues.Queue)
    assert isinstance(mpipc.Barrier(2), synchronize.Barrier)
    assert not isinstance(mpipc.RWLock(), synchronize.SemLock)
    queue = mpipc.SimpleQueue()
    assert isinstance(queue._reader, connection.Connection) and isinstance(queue._writer, connection.Connection)
    value, array, string = mpipc.Value("i"), mpipc.Array("i", 1), mpipc.Array("c", 1)
    assert isinstance(value, sharedctypes.Synchronized) and isinstance(array, sharedctypes.SynchronizedArray)
    assert isinstance(string, sharedctypes.SynchronizedString)


def test_nothing_is_loaded_for_it() -> None:
    run_script(
        """
        import sys
        import mpipc
        objects = [mpipc.Queue(), mpipc.Lock(), mpipc.Event(), mpipc.Condition()]
        assert not any(isinstance(each, int) for each in objects)
        assert all(each.__class__ is type(each) for each in objects)
        assert not {"multiprocessing.queues", "multiprocessing.synchronize"} & set(sys.modules)
        from multiprocessing import queues, synchronize
        assert isinstance(objects[0], queues.Queue) and isinstance(objects[1], synchronize.Lock)
        """
    )


def test_installed() -> None:
    """There a class that was imported before, and is kept where install() does not look, is multiprocessing's."""
    run_script(
        """
        import multiprocessing.queues, multiprocessing.synchronize
        kept = [multiprocessing.queues.Queue, multiprocessing.synchronize.Event]
        import mpipc
        mpipc.install()
        assert multiprocessing.queues.Queue is not kept[0]
        for cls, obj in zip(kept, [multiprocessing.Queue(), multiprocessing.Event()]):
            assert isinstance(obj, cls) and isinstance(obj, type(obj)) and type(obj) is not cls
        assert isinstance(multiprocessing.Queue(), multiprocessing.queues.Queue)
        """
    )


class Counted(mpipc.queues.Queue[Any]):
    made = 0
    subclasses: list[type] = []  # noqa: RUF012

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        Counted.subclasses.append(cls)

    def __init__(self) -> None:
        super(self.__class__, self).__init__(ctx=mpipc.get_context("spawn"))  # often seen, and right where it ends here
        self.__class__.made += 1

    def remade(self) -> Counted:
        return self.__class__()


def test_class_of_a_subclass() -> None:
    """`__class__` is as good as the type, but for `is`."""
    Counted.made = 0
    queue = Counted()
    other = queue.remade()
    assert isinstance(queue, queues.Queue) and isinstance(queue, Counted) and type(other) is Counted
    assert Counted.made == 2 and Counted.subclasses == []
    face = queue.__class__
    assert face == Counted and Counted == face and hash(face) == hash(Counted) and {face: 1}[Counted] == 1
    assert issubclass(face, Counted) and issubclass(face, queues.Queue) and isinstance(queue, face)
    assert (face.__name__, face.__qualname__, face.__module__) == ("Counted", "Counted", __name__)
    assert face.__mro__ == Counted.__mro__ and repr(face) == repr(Counted) and face.made == 2
    assert pickle.loads(pickle.dumps(face)) is Counted
    del face.made
    assert "made" not in vars(Counted)
    Counted.made = 0


def test_nothing_of_the_other_class_is_found() -> None:
    queue = mpipc.Queue()
    assert not hasattr(queue, "_feed") and not hasattr(queue.__class__, "_feed") and "_feed" not in dir(queue)
    assert {"put", "_messages"} <= set(dir(queue))


@pytest.mark.parametrize("name", MAKERS)
def test_copies(name: str) -> None:
    obj = getattr(mpipc, name)()
    for function in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(RuntimeError, match="inheritance"):
            function(obj)


def receive(obj: Any, answers: Any) -> None:
    answers.put((type(obj).__name__, isinstance(obj, MAKERS[type(obj).__name__])))


@pytest.mark.parametrize("name", MAKERS)
def test_in_a_child(ctx: Any, name: str) -> None:
    answers = ctx.SimpleQueue()
    process = ctx.Process(target=receive, args=(getattr(ctx, name)(), answers))
    process.start()
    process.join()
    assert process.exitcode == 0 and answers.get() == (name, True)


def test_mocks() -> None:
    lock = mpipc.Lock()
    mock = unittest.mock.create_autospec(lock)
    mock.acquire(timeout=1)
    mock.acquire.assert_called_once_with(timeout=1)
    assert isinstance(unittest.mock.Mock(spec=lock), mpipc.synchronize.Lock)
    with unittest.mock.patch.object(lock, "acquire", return_value=5):
        assert lock.acquire() == 5
    assert lock.acquire() is True


def test_dispatch_by_type() -> None:
    @functools.singledispatch
    def kind(obj: Any) -> str:
        return "other"

    @kind.register(mpipc.queues.Queue)
    def _(obj: Any) -> str:
        return "queue"

    assert [kind(mpipc.Queue()), kind(mpipc.JoinableQueue()), kind(Counted()), kind(mpipc.Lock())] == [
        "queue",
        "queue",
        "queue",
        "other",
    ]


def test_the_module_of_an_object() -> None:
    """Its class's is the one in which pickle finds the class."""
    with mpipc.Manager() as manager:
        objects = [
            mpipc.Queue(),
            mpipc.JoinableQueue(),
            mpipc.Lock(),
            mpipc.Event(),
            mpipc.Condition(),
            mpipc.Barrier(1),
        ]
        objects += [
            mpipc.Value("i"),
            mpipc.Array("i", 1),
            mpipc.Array("c", 1),
            manager.dict(),
            manager.list(),
            manager.Lock(),
        ]
        for obj in objects:
            assert obj.__module__.startswith("multiprocessing."), obj
            cls = type(obj)
            assert cls.__module__.partition(".")[0] in ("mpipc", "multiprocessing") and f"{cls.__module__}." in repr(
                cls
            )
            for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
                assert pickle.loads(pickle.dumps(cls, protocol)) is cls
                assert pickle.loads(pickle._dumps(cls, protocol)) is cls  # type: ignore[attr-defined]
    assert Counted().__module__ == __name__ and mpipc.RWLock().__module__ == "mpipc.synchronize"


def test_another_class_can_be_assigned() -> None:
    class Louder(mpipc.synchronize.Condition):
        def shout(self) -> str:
            return "!"

    condition = mpipc.Condition()
    condition.__class__ = Louder
    assert type(condition) is Louder and condition.shout() == "!"


def test_with_a_metaclass() -> None:
    class Meta(type):
        def __new__(cls, name: str, bases: Any, namespace: Any, *, needed: int) -> Meta:
            return super().__new__(cls, name, bases, namespace)

        def __init__(cls, name: str, bases: Any, namespace: Any, *, needed: int) -> None:
            pass

    class Special(mpipc.synchronize.Condition, metaclass=Meta, needed=1):
        pass

    obj = Special(ctx=mpipc.get_context())
    assert isinstance(obj, synchronize.Condition) and type(obj.__class__) is not Meta and obj.__class__ == Special
    assert pickle.loads(pickle.dumps(mpipc.Lock().__class__)) is mpipc.synchronize.Lock
