/* Rights on the family's kernel objects for a member that has changed its user id: see access.c. */
#ifndef MPIPC_ACCESS_H
#define MPIPC_ACCESS_H

#include "family.h"

#include <sys/ipc.h>

/* A system call on an object of the family, which is made once more when EACCES has been answered: nothing was done then. */
#define MP_ALLOWED(f, call)                                                                                                    \
    __extension__({                                                                                                            \
        bool asked_ = false;                                                                                                   \
        __typeof__(call) result_;                                                                                              \
        do                                                                                                                     \
            result_ = (call);                                                                                                  \
        while (__builtin_expect((intptr_t)result_ == -1, 0) && errno == EACCES && !asked_ && (asked_ = mp_access_again(f)));   \
        result_;                                                                                                               \
    })

/* slot.access = answer:8 | euid:32 << 32 */
static inline uint64_t mp_access_word(enum mp_access answer, uint32_t uid) { return (uint64_t)answer | (uint64_t)uid << 32; }
static inline enum mp_access mp_access_of(uint64_t word) { return word & 0xff; }
static inline uint32_t mp_access_uid(uint64_t word) { return word >> 32; }

bool mp_access_again(struct mp_family *f);
int mp_access_need(struct mp_family *f);
bool mp_access_is_users(struct mp_family *f, uint32_t uid);
bool mp_access_is_ours(struct mp_family *f, const struct ipc_perm *perm);
void mp_access_share_set(struct mp_family *f, int id);
void mp_access_share_queue(struct mp_family *f, int id);
void mp_access_share_segment(struct mp_family *f, int id);

/* Before what is done in memory alone and told to others after it: MP_OK, unless this process was refused, and still is. */
static inline int mp_access_still(struct mp_family *f) {
    return __builtin_expect(f->refused_error == MP_OK, 1) ? MP_OK : mp_access_need(f);
}

#endif
