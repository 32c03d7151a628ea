/* Scenarios of kill_every_step.c: the creation of a named segment by a family. */
#include "core.h"

static const struct mp_name segment_name = {"kill-every-step", 15, 0x5ca1ab};
static int segments_at_first;

static int create_named(struct mp_named_ref *ref) {
    struct mp_named_patience patience = {0};
    uint32_t index = make(MP_KIND_SEGMENT);
    int error = mp_named_create(f, index, &segment_name, 5000, 0600, true, &patience, ref);
    if (error != MP_OK)
        mp_block_abandon(f, index);
    else if (!mp_named_publish(f, index, true, ref))
        error = EAGAIN;
    return error;
}
static void setup_no_name(void) { segments_at_first = segments(); }
static void op_create_named(void) {
    struct mp_named_ref ref;
    check_equal(create_named(&ref), MP_OK);
}
static uint32_t blocks_in_use(void) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < mp_block_high(f); i++)
        count += mp_block_state_of(atomic_load(&mp_block_at(f, i)->word)) != MP_BLOCK_FREE;
    return count;
}
/* There is a segment of this name, or nothing of it. */
static void check_named(bool finished) {
    struct mp_named_ref ref;
    int left = segments() - segments_at_first; /* first: who looks for the name removes what its creator has left behind */
    check(left == 1 || (left == 0 && !finished));
    appears_once(left == 1);
    if (left == 1) {
        check_equal(mp_named_attach(&segment_name, false, &ref), MP_OK);
        int shmid = ref.shmid;
        shmdt(ref.header);
        check_equal(mp_named_unlink(&segment_name, shmid, &ref), MP_OK);
        check(mp_named_unlinked(f, &ref));
    }
    check_equal(segments(), segments_at_first);
    check_equal(blocks_in_use(), 0);
}

static int shmid_of_name;

static void setup_named(void) {
    struct mp_named_ref ref;
    setup_no_name();
    check_equal(create_named(&ref), MP_OK);
    shmid_of_name = ref.shmid;
    shmdt(ref.header);
}
static void op_unlink_named(void) {
    struct mp_named_ref ref;
    check_equal(mp_named_unlink(&segment_name, shmid_of_name, &ref), MP_OK);
    check(mp_named_unlinked(f, &ref));
}
/* It is there, or nothing of it. */
static void check_unlinked(bool finished) {
    struct mp_named_ref ref;
    int left = segments() - segments_at_first;
    check(left == 0 || (left == 1 && !finished));
    appears_once(left == 0);
    if (left == 1) {
        check_equal(mp_named_unlink(&segment_name, shmid_of_name, &ref), MP_OK);
        check(mp_named_unlinked(f, &ref));
    }
    check_equal(segments(), segments_at_first);
    check_equal(blocks_in_use(), 0);
}

/* A segment stays when its family lets go of it, or begins to track it, whatever becomes of who does that. */
static void op_untrack_named(void) {
    struct mp_named_ref ref;
    check_equal(mp_named_attach(&segment_name, false, &ref), MP_OK);
    check(mp_named_is_tracked(f, &ref));
    mp_named_untrack(f, &ref);
    shmdt(ref.header);
}
static void setup_untracked_name(void) {
    setup_named();
    op_untrack_named();
    check_equal(blocks_in_use(), 0);
}
static void op_track_named(void) {
    struct mp_named_ref ref;
    check_equal(mp_named_attach(&segment_name, false, &ref), MP_OK);
    check_equal(mp_named_track(f, make(MP_KIND_SEGMENT), &ref), MP_OK);
    shmdt(ref.header);
}
static void check_tracking(bool tracked_afterwards, bool finished) {
    struct mp_named_ref ref;
    check_equal(segments(), segments_at_first + 1);
    check_equal(mp_named_attach(&segment_name, false, &ref), MP_OK);
    bool tracked = mp_named_is_tracked(f, &ref);
    shmdt(ref.header);
    check(tracked == tracked_afterwards || !finished);
    appears_once(tracked == tracked_afterwards);
    check_equal(mp_named_unlink(&segment_name, shmid_of_name, &ref), MP_OK);
    check_equal(mp_named_unlinked(f, &ref), tracked);
    for (uint32_t i = 0; i < mp_block_high(f); i++) /* one that was let go of halfway */
        mp_named_reclaim(f, i, f->slot);
    check_equal(segments(), segments_at_first);
    check_equal(blocks_in_use(), 0);
}
static void check_untracked(bool finished) { check_tracking(false, finished); }
static void check_tracked(bool finished) { check_tracking(true, finished); }

static int create_candidate_and_die(void) {
    struct mp_named_patience patience = {0};
    struct mp_named_ref ref;
    check_equal(mp_named_create(f, make(MP_KIND_SEGMENT), &segment_name, 5000, 0600, true, &patience, &ref), MP_OK);
    raise(SIGKILL);
    return 0;
}
static void setup_dead_creator(void) {
    setup_no_name();
    dies(create_candidate_and_die);
    check_equal(segments(), segments_at_first + 1);
}
static void check_nothing_named(bool finished) {
    check_equal(segments(), segments_at_first);
    check_equal(blocks_in_use(), 0);
}
