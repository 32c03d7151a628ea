"""Logging of several processes in one place: QueueHandlers, set up by dictConfig(), and a QueueListener."""

import logging
import logging.config
import logging.handlers
import multiprocessing
import sys


def configure(queue):
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"queue": {"class": "logging.handlers.QueueHandler", "queue": queue}},
            "root": {"handlers": ["queue"], "level": "DEBUG"},
        }
    )


def work(queue, number):
    configure(queue)
    logging.getLogger(f"worker.{number}").warning("%s of %d", "task", number)


class Collect(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(f"{record.name} {record.levelname} {record.getMessage()}")


if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    for make in (context.Queue, context.JoinableQueue):
        queue, collect = make(-1), Collect()
        listener = logging.handlers.QueueListener(queue, collect)
        listener.start()
        configure(queue)
        logging.info("begins")
        processes = [context.Process(target=work, args=(queue, n)) for n in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        listener.stop()
        print(*sorted(collect.lines), sep="\n")
        queue.close()
        queue.join_thread()
