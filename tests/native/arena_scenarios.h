/* Scenarios of kill_every_step.c: claiming and freeing pieces of a queue's arena. */

#define PIECES 16u /* of the first segment of the smallest size */

static struct mp_piece pieces[PIECES];

static struct mp_piece claim_one(void) {
    struct mp_piece piece;
    unsigned char *data;
    check_equal(mp_piece_claim(&queue, 3000, &piece, &data), MP_OK);
    return piece;
}
static struct mp_arena *arena(void) { return mp_arena_open(&queue); }
static uint32_t segment_of_pieces(void) { return pieces[0].segment; }

static void setup_3_pieces_taken(void) {
    struct mp_piece_place place;
    setup_empty_queue();
    for (int i = 0; i < 3; i++) {
        pieces[i] = claim_one();
        check_equal(pieces[i].number, i);
    }
    check_equal(mp_piece_find(&queue, segment_of_pieces(), PIECES - 1, &place), MP_OK);
    check_equal(mp_piece_find(&queue, segment_of_pieces(), PIECES, &place), MP_CORRUPT);
}
static void op_claim_and_free(void) {
    struct mp_piece first = claim_one(), second = claim_one();
    mp_piece_free(&queue, &first);
    first = claim_one();
    mp_piece_free(&queue, &second);
    mp_piece_free(&queue, &first);
}
static void op_claim(void) { claim_one(); }
static void free_one_and_child_goes_on(void) {
    mp_piece_free(&queue, &pieces[1]);
    run_child_to_its_end();
}

/* All pieces can be had, before a segment is added. What the dead child was filling can when somebody has had the lock. */
static void all_pieces_can_be_had(uint32_t taken) {
    check_equal(mp_queue_size(&queue), 0);
    uint32_t segments = atomic_load(&arena()->segments);
    for (uint32_t i = taken; i < PIECES; i++)
        pieces[i] = claim_one();
    check_equal(atomic_load(&arena()->segments), segments);
    for (uint32_t i = 0; i < PIECES; i++)
        mp_piece_free(&queue, &pieces[i]);
    no_queue();
}
static void check_claimed_and_freed(bool finished) { all_pieces_can_be_had(3); }
/* The mark is not above a free piece, though it was raised while that was freed. (The child's piece is free by recovery.) */
static void check_mark(bool finished) {
    uint32_t segment = segment_of_pieces();
    check_equal(mp_queue_size(&queue), 0);
    check(atomic_load(&arena()->low[segment]) <= 1);
    struct mp_piece again = claim_one();
    check_equal(again.number, 1);
    pieces[1] = again;
    all_pieces_can_be_had(3);
}
