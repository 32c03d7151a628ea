"""A job server: queues that a manager gives to whoever connects by TCP and knows the key."""

import multiprocessing
import queue
import sys
from multiprocessing.managers import SyncManager

KEY = b"swordfish"
jobs, results = queue.Queue(), queue.Queue()


def get_jobs():
    return jobs


def get_results():
    return results


class ServerManager(SyncManager):
    pass


class ClientManager(SyncManager):
    pass


ServerManager.register("get_jobs", callable=get_jobs)
ServerManager.register("get_results", callable=get_results)
ClientManager.register("get_jobs")
ClientManager.register("get_results")


def work(address):
    manager = ClientManager(address=address, authkey=KEY)
    manager.connect()
    todo, done = manager.get_jobs(), manager.get_results()
    for job in iter(todo.get, None):
        done.put((job, job**2))


if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    server = ServerManager(address=("127.0.0.1", 0), authkey=KEY, ctx=context)
    server.start()
    todo, done = server.get_jobs(), server.get_results()
    workers = [context.Process(target=work, args=(server.address,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for job in [*range(8), None, None]:
        todo.put(job)
    print(sorted(done.get() for _ in range(8)))
    for worker in workers:
        worker.join()
    try:
        ClientManager(address=server.address, authkey=b"wrong").connect()
    except multiprocessing.AuthenticationError as error:
        print(type(error).__name__)
    server.shutdown()
