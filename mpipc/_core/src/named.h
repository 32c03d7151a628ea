/* Named segments: what SharedMemory creates, attaches by name and unlinks. The protocol stands in named.c. */
#ifndef MPIPC_NAMED_H
#define MPIPC_NAMED_H

#include "family.h"

#define MP_NAMED_PREFIX 0x6e000000u /* 'n' as the first byte of the key */
#define MP_NAMED_MAGIC 0x656d616e6370696dull /* "mpicname" */
#define MP_NAMED_VERSION 1u
#define MP_NAMED_DATA 4096u /* offset of the user's bytes */
#define MP_NAMED_LENGTH 255u /* longest name in bytes: NAME_MAX, as shm_open(3) has it */
#define MP_NAMED_PROBES 16u /* keys that a name may be found under */

enum mp_named_state {
    MP_NAMED_NEW,       /* by the kernel's zeros: created, nothing written yet */
    MP_NAMED_CANDIDATE, /* complete; its creator is making sure that there is no other of this name */
    MP_NAMED_LIVE,      /* found by its name */
    MP_NAMED_GONE       /* unlinked or given up: whoever meets it removes it */
};

/* The first page of the segment. */
struct mp_named {
    _Atomic uint32_t state;
    uint32_t version;
    uint64_t magic;
    uint64_t size;   /* asked for, without this page */
    uint64_t token;  /* random, also in the block: tells the segment from a later one under the same key */
    uint64_t family; /* nonce of the creator's family, 0 if it is not tracked */
    uint32_t block;
    uint32_t serial;
    uint32_t length;
    char name[MP_NAMED_LENGTH + 1];
};
_Static_assert(sizeof(struct mp_named) <= MP_NAMED_DATA, "the header fits its page");

/* A segment, as it was looked at once: what another process may write is not read a second time. */
struct mp_named_ref {
    struct mp_named *header; /* attached; NULL if it is not */
    int shmid;
    int32_t key;
    uint32_t position; /* which of the keys it stands under */
    bool attaching;    /* the call that failed was shmat, not shmget */
    bool own;          /* made by this user, says the kernel */
    uint64_t size;     /* the user's bytes, says the kernel */
    uint64_t token;    /* the others are said by the header */
    uint64_t family;
    uint32_t block;
    uint32_t serial;
};

/* What is left of a creation's patience with others. Starts as zeros, but for the first two. */
struct mp_named_patience {
    int (*interrupted)(void *context); /* called between two looks, to run signal handlers: not 0: give up; NULL: none */
    void *context;
    int shmid;          /* of the candidate waited for */
    unsigned looks;     /* at that one */
    unsigned sightings; /* of any candidate */
    unsigned foreign;   /* of those of other users */
    unsigned attempts;
};

struct mp_name {
    const char *bytes;
    uint32_t length;
    uint32_t hash; /* 24 bits */
};

int mp_named_attach(const struct mp_name *name, bool readonly, struct mp_named_ref *ref);
int mp_named_create(struct mp_family *f, uint32_t index, const struct mp_name *name, uint64_t size, int flags, bool tracked,
                    struct mp_named_patience *patience, struct mp_named_ref *ref);
bool mp_named_publish(struct mp_family *f, uint32_t index, bool tracked, struct mp_named_ref *ref);
void mp_named_discard(struct mp_named_ref *ref);
int mp_named_unlink(const struct mp_name *name, int shmid, struct mp_named_ref *ref);
bool mp_named_is_tracked(struct mp_family *f, const struct mp_named_ref *ref);
int mp_named_track(struct mp_family *f, uint32_t index, struct mp_named_ref *ref);
void mp_named_untrack(struct mp_family *f, struct mp_named_ref *ref);
bool mp_named_unlinked(struct mp_family *f, const struct mp_named_ref *ref);
void mp_named_release(struct mp_family *f, uint32_t index, uint32_t serial, int by_slot);
void mp_named_recover(struct mp_family *f, uint32_t index, const uint64_t *dead);
void mp_named_reclaim(struct mp_family *f, uint32_t index, int by_slot);
void mp_named_remove(struct mp_family *f, struct mp_block *b);
int32_t mp_named_key(uint32_t hash, uint32_t position);

#endif
