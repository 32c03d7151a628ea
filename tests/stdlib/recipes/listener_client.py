"""A server by connection.Listener that children talk to, several at once, with wait(); and the end of a queue."""

import multiprocessing
import sys
from multiprocessing.connection import Client, Listener, wait


def talk(address, number):
    with Client(address, authkey=b"key") as connection:
        connection.send({"number": number, "list": [number] * 2})
        connection.send_bytes(b"x" * number)
        print_back = connection.recv()
    assert print_back == number * 10


if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with Listener(("127.0.0.1", 0), authkey=b"key") as listener:
        children = [context.Process(target=talk, args=(listener.address, n)) for n in range(1, 4)]
        for child in children:
            child.start()
        open_ones = [listener.accept() for _ in children]
        heard = []
        while open_ones:
            for connection in wait(open_ones):
                said, more = connection.recv(), connection.recv_bytes()
                heard.append((said["number"], said["list"], len(more)))
                connection.send(said["number"] * 10)
                connection.close()
                open_ones.remove(connection)
        for child in children:
            child.join()
        print(sorted(heard), [child.exitcode for child in children])
    queue = context.SimpleQueue()
    print(wait([queue._reader], 0), queue._poll())
    queue.put("there")
    print(wait([queue._reader]) == [queue._reader], queue.get())
