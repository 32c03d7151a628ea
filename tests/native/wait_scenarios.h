/* Scenarios of kill_every_step.c: wait records. Nothing rests on them, but who looks may believe them, and none is left. */

static const struct mp_waiting nobody;

/* Of all that can be read, how many there are, and the last of them. */
static int waits_now(struct mp_waiting *last) {
    struct mp_waiting waiting;
    int n = 0;
    for (uint32_t i = 0; i < mp_wait_high(f); i++)
        if (mp_wait_read(f, i, &waiting)) {
            *last = waiting;
            n++;
        }
    return n;
}
static void no_record_is_left(void) {
    for (uint32_t i = 0; i < MP_WAITS; i++)
        check_equal(atomic_load(&f->seg->waits[i].word), 0);
    atomic_store(&f->h->wait_high, MP_WAITS_LEAST);
}

static void op_note_wait(void) {
    struct mp_wait *wait = mp_wait_enter(f, MP_WAIT_RING, 7);
    mp_wait_leave(wait, false);
}
static void check_no_wait(bool finished) {
    struct mp_waiting waiting = nobody;
    check_equal(waits_now(&waiting), 0);
    struct mp_wait *mine = mp_wait_enter(f, MP_WAIT_ZERO, 9); /* its place can be had */
    check(mine != NULL);
    check_equal(waits_now(&waiting), 1);
    check(waiting.kind == MP_WAIT_ZERO && waiting.where == 9 && waiting.tid == getpid() && waiting.slot == f->slot);
    int64_t since = waiting.since_ns;
    check(since <= mp_now_ns());
    mp_wait_leave(mine, true); /* a tick: it goes on */
    mine = mp_wait_enter(f, MP_WAIT_ZERO, 9);
    check(waits_now(&waiting) == 1 && waiting.since_ns == since);
    mp_wait_leave(mine, true);
    mp_wait_over();
    mine = mp_wait_enter(f, MP_WAIT_ZERO, 9);
    check(waits_now(&waiting) == 1 && waiting.since_ns > since);
    mp_wait_leave(mine, false);
    no_record_is_left();
}

/* As many as there is room for at first: the next one makes room. */
static void setup_full_waits(void) {
    for (uint32_t i = 0; i < MP_WAITS_LEAST; i++)
        atomic_store(&f->seg->waits[i].word, mp_wait_word(MP_WAIT_RING, f->slot, 1000 + (pid_t)i));
}
static void check_more_waits(bool finished) {
    struct mp_waiting waiting;
    check(mp_wait_high(f) > MP_WAITS_LEAST || !finished);
    check_equal(waits_now(&waiting), MP_WAITS_LEAST);
    for (uint32_t i = 0; i < MP_WAITS_LEAST; i++)
        mp_wait_leave(&f->seg->waits[i], false);
    check_no_wait(finished);
}

/* One that was asleep when it was killed, whom the child recovers for. */
static int sleeps_and_dies(void) { return mp_wait_enter(f, MP_WAIT_MESSAGE, 5) != NULL ? 0 : 1; }
static void setup_dead_waiter(void) { dies_with(sleeps_and_dies); }
