/* Scenarios of kill_every_step.c: memory that processes and messages hold. However the child dies, memory is held by nobody who is not
 * there, and what a message refers to is there, whole. */

#define HELD 20000u

static uint32_t held[2]; /* blocks */

static void fill_memory(unsigned char *data, uint32_t number) {
    for (uint32_t i = 0; i < HELD; i += sizeof number)
        memcpy(data + i, &number, sizeof number);
}
static void have_memory(int which, uint32_t number) {
    struct mp_memory memory;
    check_equal(mp_memory_claim(f, HELD, &memory), MP_OK);
    fill_memory(memory.data, number);
    int64_t index = mp_memory_new(f, &memory);
    check(index >= 0);
    held[which] = (uint32_t)index;
}
static void memory_is(uint32_t index, uint32_t number) {
    struct mp_memory memory;
    uint32_t found;
    check_equal(mp_memory_find(f, index, &memory), MP_OK);
    check_equal(memory.piece.length, HELD);
    for (uint32_t i = 0; i < HELD; i += sizeof found) {
        memcpy(&found, memory.data + i, sizeof found);
        check_equal(found, number);
    }
}

static uint32_t live_blocks(uint32_t kind) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < mp_block_high(f); i++)
        count += mp_block_at(f, i)->kind == kind && mp_block_state_of(atomic_load(&mp_block_at(f, i)->word)) != MP_BLOCK_FREE;
    return count;
}
static uint32_t carriers_in_use(void) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < atomic_load(&f->h->carrier_high); i++)
        count += mp_carrier_state_of(atomic_load(&f->seg->carriers[i].word)) != MP_CARRIER_FREE;
    return count;
}
static uint64_t memory_in_use(void) {
    uint64_t bytes, in_use, count;
    mp_memory_usage(f, &bytes, &in_use, &count);
    return in_use;
}
static void no_memory_is_held(void) {
    check_equal(live_blocks(MP_KIND_MEMORY), 0);
    check_equal(memory_in_use(), 0);
    check(!mp_carriers_in_use(f));
    check(live_blocks(MP_KIND_SPACE) <= 1);
}

/* What serializer.pyx does, in its order. */
static void write_message_with(int count, struct mp_piece *piece) {
    struct {
        struct mp_references head;
        uint64_t blocks[2];
    } r = {.head.count = (uint32_t)count};
    unsigned char *data;
    int64_t carrier = mp_carrier_new(f);
    check(carrier >= 0);
    for (int i = 0; i < count; i++) {
        check_equal(mp_carrier_hold(f, (uint32_t)carrier, held[i]), MP_OK);
        r.blocks[i] = held[i] | (uint64_t)mp_block_serial(atomic_load(&mp_block_at(f, held[i])->word)) << 32;
    }
    check_equal(mp_piece_claim(&queue, sizeof r, piece, &data), MP_OK);
    memcpy(data, &r, sizeof r);
    mp_carrier_send(&queue, (uint32_t)carrier, piece);
}
static void send_memories(int count) {
    struct mp_message m = {.kind = MP_BODY_PIECE};
    struct mp_piece piece;
    write_message_with(count, &piece);
    memcpy(m.data, &piece, sizeof piece);
    check_equal(send_message(&m, sizeof piece), MP_OK);
    mp_piece_sent(&queue, &piece);
}
static void drop_memories(int count) {
    for (int i = 0; i < count; i++)
        mp_block_drop(f, held[i]);
}

/* What carried.pyx does. Whether there was a message. */
static bool take_memories(void) {
    struct mp_item item;
    uint32_t count;
    int error = take_item(&item);
    if (error == MP_EMPTY || error == MP_SHUT_DOWN)
        return false;
    check_equal(error, MP_OK);
    check(item.message.kind == MP_BODY_PIECE && item.piece.carrier != 0);
    struct mp_references *r = mp_message_references(item.data, item.size, &count);
    check(r != NULL && count <= 2);
    for (uint32_t i = 0; i < count; i++) {
        held[i] = mp_reference_block(r->blocks[i]);
        check_equal(mp_block_adopt(f, held[i], mp_reference_serial(r->blocks[i])), MP_OK);
    }
    mp_message_end(&queue, &item.piece);
    for (uint32_t i = 0; i < count; i++)
        memory_is(held[i], 7 + i);
    drop_memories((int)count);
    return true;
}

static void setup_space(void) {
    setup_nothing();
    have_memory(0, 1);
    drop_memories(1);
}
static void setup_queue_and_space(void) {
    setup_queue_with_arena();
    have_memory(0, 1);
    drop_memories(1);
}
static void have_two(void) {
    have_memory(0, 7);
    have_memory(1, 8);
}
static void setup_message_with_two(void) {
    setup_queue_and_space();
    have_two();
    send_memories(2);
    drop_memories(2);
    check_equal(live_blocks(MP_KIND_MEMORY), 2);
}

static void op_memory_new(void) {
    have_memory(0, 7);
    drop_memories(1);
}
static void check_memory_free(bool finished) {
    no_memory_is_held();
    have_memory(0, 9);
    memory_is(held[0], 9);
    drop_memories(1);
    no_memory_is_held();
}
static void make_memory_and_child_goes_on(void) {
    have_memory(1, 8);
    run_child_to_its_end();
    memory_is(held[1], 8);
    mp_block_drop(f, held[1]);
}

static void op_send_memories(void) {
    send_memories(2);
    drop_memories(2);
}
/* A sender who died may leave a piece of which only the queue's owner can tell what it is; then the carrier follows it. */
static void check_memories_sent(bool finished) {
    int64_t size = mp_queue_size(&queue);
    check(size == 0 || size == 1);
    if (finished)
        check_equal(size, 1);
    appears_once(size == 1);
    check_equal(take_memories(), size == 1);
    mp_recover(f); /* of those that were in doubt */
    no_memory_is_held();
    no_queue();
}
static void op_take_memories(void) { check(take_memories()); }
static void check_memories_taken(bool finished) {
    int64_t size = mp_queue_size(&queue);
    check(size == 0 || (size == 1 && !finished && !seen));
    seen = size == 0;
    check_equal(take_memories(), size == 1);
    mp_recover(f);
    no_memory_is_held();
    no_queue();
}
/* A message in somebody's hands is not over, whoever looks. */
static void recover_and_child_goes_on(void) {
    mp_recover(f);
    run_child_to_its_end();
}
static void op_not_send_memories(void) {
    struct mp_piece piece;
    write_message_with(2, &piece);
    mp_message_end(&queue, &piece);
    drop_memories(2);
}
static void check_memories_not_sent(bool finished) {
    check_equal(mp_queue_size(&queue), 0);
    mp_recover(f);
    no_memory_is_held();
    no_queue();
}

static int send_two_and_die(void) {
    have_two();
    write_message_with(2, &(struct mp_piece){0}); /* one that is never sent */
    send_memories(2);
    raise(SIGKILL);
    return 0;
}
static int take_two_and_die(void) {
    struct mp_item item;
    check_equal(take_item(&item), MP_OK);
    raise(SIGKILL);
    return 0;
}
static void setup_dead_sender_of_memories(void) {
    setup_queue_and_space();
    dies(send_two_and_die);
}
static void setup_dead_receiver_of_memories(void) {
    setup_message_with_two();
    dies(take_two_and_die);
}
static void check_only_the_sent_one(bool finished) {
    check_equal(mp_queue_size(&queue), 1);
    mp_recover(f);
    check_equal(live_blocks(MP_KIND_MEMORY), 2);
    check(take_memories());
    mp_recover(f);
    no_memory_is_held();
    no_queue();
}

/* Whether a dead sender's message was sent, recovery finds out itself: nobody has used the queue since. */
static void check_mended(bool finished) {
    check_equal(carriers_in_use(), 1);
    check_equal(atomic_load(&at()->lock.word) & MP_LOCK_OWNER, 0);
    check_equal(atomic_load(&f->h->mending), 0);
    check_only_the_sent_one(finished);
}
/* A living process has the lock: the next recovery after that does it. */
static void setup_dead_sender_and_owner_of_lock(void) {
    setup_dead_sender_of_memories();
    lock_queue();
}
static void check_mended_later(bool finished) {
    check_equal(carriers_in_use(), 2);
    check(f->again);
    mp_queue_unlock(&queue);
    mp_recover(f);
    check(!f->again);
    check_mended(finished);
}
static void check_memories_dropped(bool finished) {
    int64_t size = mp_queue_size(&queue);
    if (finished)
        check_equal(size, 0);
    check_equal(take_memories(), size == 1);
    mp_recover(f);
    no_memory_is_held();
    no_queue();
}

/* The last handle on a queue that has messages which hold memory. */
static void have_queue_with_memories(void) {
    have_queue_with_everything();
    have_two();
    send_memories(2);
    drop_memories(2);
}
static void check_no_queue_and_no_memory(bool finished) {
    mp_recover(f);
    no_memory_is_held();
}
