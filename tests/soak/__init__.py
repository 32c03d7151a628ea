"""Everything at once, for as long as you like: `make soak SECONDS=3600 SEED=7`.

Rounds of a few seconds. In each, some processes work with one kind of primitive while a storm goes over them: they are
killed, stopped for up to three ticks, and interrupted by signal handlers that raise; the family's reaper is killed.
Each round ends with checks that are exact: every process keeps, in memory that does not die with it, what it is about
to do and what it has done, so that what may be missing, and what may not, is known to the last unit.

    board      that memory
    crew       the processes of a round, seen from inside (Worker) and from outside (Crew)
    storm      what is done to them
    scenario   what a round is made of; sync, queues, memory and pools have the scenarios
    runner     runs rounds one after the other in one process, and checks that it leaves nothing
    __main__   starts the runner, watches over it, reports

Each decision comes from the seed and the number of the round: `make soak SEED=7 ROUND=12` runs that round again. What
the processor makes of it is another time's luck.
"""
