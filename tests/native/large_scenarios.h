/* Scenarios of kill_every_step.c: large messages, which are a descriptor in the queue and a piece of shared memory. What size()
 * says is there can be taken: who was told so by select(2) must not wait. */

#define LARGE 20000u

static void send_large(uint32_t number) {
    struct mp_message m = {.kind = MP_BODY_PIECE};
    struct mp_piece piece;
    unsigned char *data;
    check_equal(mp_piece_claim(&queue, LARGE, &piece, &data), MP_OK);
    for (uint32_t i = 0; i < LARGE; i += sizeof number)
        memcpy(data + i, &number, sizeof number);
    memcpy(m.data, &piece, sizeof piece);
    check_equal(send_message(&m, sizeof piece), MP_OK);
    mp_piece_sent(&queue, &piece);
}

/* 0: there is none. Whole, or not at all. */
static uint32_t take_large(void) {
    struct mp_item item;
    uint32_t number = 0, other;
    int error = take_item(&item);
    if (error == MP_EMPTY)
        return 0;
    check_equal(error, MP_OK);
    memcpy(&number, item.data, sizeof number);
    if (item.message.kind != MP_BODY_PIECE)
        return number;
    check_equal(item.size, LARGE);
    for (uint32_t i = 0; i < LARGE; i += sizeof number) {
        memcpy(&other, item.data + i, sizeof other);
        check_equal(other, number);
    }
    mp_piece_free(&queue, &item.piece);
    return number;
}

static void nothing_is_left_of_large_ones(void) {
    uint64_t bytes, in_use, segments_used;
    check_equal(mp_queue_size(&queue), 0);
    check_equal(take_large(), 0);
    mp_arena_usage(&queue, &bytes, &in_use, &segments_used);
    check_equal(in_use, 0);
    no_queue();
}

/* Messages from `next` to `last` are there, and no others, and they are as many as the queue says. */
static void are_there(uint32_t next, uint32_t last) {
    for (; next <= last; next++) {
        check_equal(mp_queue_size(&queue), last - next + 1);
        check_equal(take_large(), next);
    }
    nothing_is_left_of_large_ones();
}

static void setup_queue_with_arena(void) {
    setup_queue_with_token();
    send_large(9);
    check_equal(take_large(), 9);
}
static void setup_1_and_2_large(void) {
    setup_queue_with_arena();
    send_number(1);
    send_large(2);
}
static void op_send_large_and_small(void) {
    send_large(3);
    send_number(4);
}
static void check_sent_large(bool finished) {
    int64_t size = mp_queue_size(&queue);
    check(size >= 2 && size <= 4 && (size == 4 || !finished));
    are_there(1, (uint32_t)size);
}

static void setup_3_large(void) {
    setup_queue_with_arena();
    for (uint32_t number = 1; number <= 3; number++)
        send_large(number);
}
static void op_take_large(void) { take_large(); }
static void check_took_large(bool finished) {
    int64_t size = mp_queue_size(&queue);
    check(size == 2 || (size == 3 && !finished && !seen));
    seen = size == 2;
    are_there(size == 2 ? 2 : 1, 3);
}

/* A process has died with a piece in its hand: the one who repairs dies, too. */
static int send_large_and_die_before_it_says_so(void) {
    struct mp_message m = {.kind = MP_BODY_PIECE};
    struct mp_piece piece, lost;
    unsigned char *data;
    uint32_t number = 3;
    check_equal(mp_piece_claim(&queue, LARGE, &lost, &data), MP_OK); /* nothing leads to this one */
    check_equal(mp_piece_claim(&queue, LARGE, &piece, &data), MP_OK);
    for (uint32_t i = 0; i < LARGE; i += sizeof number)
        memcpy(data + i, &number, sizeof number);
    memcpy(m.data, &piece, sizeof piece);
    check_equal(mp_queue_send(&queue, &m, sizeof piece, 0, -1), MP_OK);
    raise(SIGKILL);
    return 0;
}
static void dies(int (*life)(void)) {
    pid_t pid = bystander(life);
    int status;
    check(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
    bystander_count--;
}
static void setup_orphan(void) {
    setup_1_and_2_large();
    dies(send_large_and_die_before_it_says_so);
    mp_recover(f);
    check(atomic_load(&queue.q->token) & MP_TOKEN_REPAIR);
}
static void op_repair(void) { check_equal(mp_queue_size(&queue), 3); }
static void check_orphan_sent(bool finished) { are_there(1, 3); }

static void setup_dead_sender(void) {
    setup_1_and_2_large();
    dies(send_large_and_die_before_it_says_so);
}
