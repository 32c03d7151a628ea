"""Queue and PriorityQueue against a model: several processes put and take in an order that hypothesis chooses."""

import heapq
import os
import queue as stdlib_queue
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import mpipc
from mpipc.queues import PriorityQueue, Queue

AGENTS = 3


def _agent(tested: Any, commands: Any, replies: Any) -> None:
    """Does with the tested queue what it is told to, and tells what came of it."""
    for method, arguments, options in iter(commands.recv, None):
        try:
            replies.send(("returned", getattr(tested, method)(*arguments, **options)))
        except Exception as e:
            replies.send(("raised", type(e)))


class Agent:
    def __init__(self, tested: Any) -> None:
        context = mpipc.get_context("fork")
        commands, self.commands = context.Pipe(duplex=False)
        self.replies, replies = context.Pipe(duplex=False)
        self.process = context.Process(target=_agent, args=(tested, commands, replies))
        self.process.start()
        commands.close()
        replies.close()

    def call(self, method: str, *arguments: Any, **options: Any) -> tuple[str, Any]:
        self.commands.send((method, arguments, options))
        assert self.replies.poll(60), f"{method} hangs"
        return self.replies.recv()  # type: ignore[no-any-return]

    def end(self) -> None:
        self.commands.send(None)
        self.process.join()
        self.commands.close()
        self.replies.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.commands.close()
        self.replies.close()


class Model:
    """What is in the queue, in the order in which it will come out."""

    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.heap: list[tuple[int, int, bytes]] = []
        self.count = 0

    def put(self, obj: bytes, priority: int) -> tuple[str, Any]:
        if self.maxsize and len(self.heap) == self.maxsize:
            return ("raised", stdlib_queue.Full)
        self.count += 1
        heapq.heappush(self.heap, (-priority, self.count, obj))
        return ("returned", None)

    def get(self) -> tuple[str, Any]:
        return ("returned", heapq.heappop(self.heap)[2]) if self.heap else ("raised", stdlib_queue.Empty)


bodies = st.builds(
    lambda size, fill: bytes([fill]) * size,
    st.one_of(st.integers(0, 300), st.integers(2030, 2060), st.sampled_from([8191, 8192, 8193, 16_384, 200_000])),
    st.integers(0, 255),
)
agents = st.integers(0, AGENTS - 1)


class QueueMachine(RuleBasedStateMachine):
    priorities = False

    @initialize(maxsize=st.sampled_from([0, 1, 3, 100]))
    def start(self, maxsize: int) -> None:
        self.queue: Any = PriorityQueue(maxsize) if self.priorities else Queue(maxsize)
        self.model = Model(maxsize)
        self.agents = [Agent(self.queue) for _ in range(AGENTS)]

    @rule(agent=agents, body=bodies, priority=st.integers(0, 3))
    def put(self, agent: int, body: bytes, priority: int) -> None:
        options = {"priority": priority} if self.priorities else {}
        expected = self.model.put(body, priority if self.priorities else 0)
        assert self.agents[agent].call("put", body, False, **options) == expected

    @rule(agent=agents, several=st.lists(bodies, max_size=60), priority=st.integers(0, 3))
    def put_many(self, agent: int, several: list[bytes], priority: int) -> None:
        options = {"priority": priority} if self.priorities and priority else {}
        put = [self.model.put(body, priority if options else 0)[0] for body in several].count("returned")
        assert self.agents[agent].call("put_many", several, False, **options) == ("returned", put)

    @rule(agent=agents, timeout=st.sampled_from([0, 0.001]))
    def get(self, agent: int, timeout: float) -> None:
        assert self.agents[agent].call("get", True, timeout) == self.model.get()

    @rule(agent=agents)
    @precondition(lambda self: self.model.heap)
    def get_untimed(self, agent: int) -> None:
        assert self.agents[agent].call("get") == self.model.get()

    @rule(agent=agents, most=st.integers(1, 40))
    def get_many(self, agent: int, most: int) -> None:
        expected = [self.model.get() for _ in range(most)]
        result = ("returned", [obj for how, obj in expected if how == "returned"])
        assert self.agents[agent].call("get_many", most, False) == (result if result[1] else expected[0])

    @rule(agent=agents)
    def replace(self, agent: int) -> None:
        """Killed while it is doing nothing, a process takes nothing along."""
        self.agents[agent].kill()
        self.agents[agent] = Agent(self.queue)

    @invariant()
    def sizes_are_true(self) -> None:
        if hasattr(self, "model"):
            assert self.queue.qsize() == len(self.model.heap)
            assert self.queue.empty() == (not self.model.heap)
            assert self.queue.full() == (len(self.model.heap) == self.model.maxsize != 0)

    def teardown(self) -> None:
        if hasattr(self, "agents"):
            for agent in self.agents:
                agent.end()
            assert [self.queue.get(timeout=0) for _ in self.model.heap] == [obj for *_, obj in sorted(self.model.heap)]
            assert self.queue.empty()
            del self.queue


class PriorityQueueMachine(QueueMachine):
    priorities = True


@pytest.mark.slow_but("QueueMachine")
@pytest.mark.parametrize("machine", [QueueMachine, PriorityQueueMachine])
@pytest.mark.timeout(600)
def test_against_the_model(machine: type[QueueMachine]) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    examples = int(os.environ.get("MPIPC_EXAMPLES", "15"))
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
