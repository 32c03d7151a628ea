/* Queues: messages in a System V message queue, and in shared memory where that has no room for them.
 *
 * A queue is a family block of kind QUEUE; it owns one message queue, the bells its waiters park at, and, once it needs
 * them, shared memory segments (its arena). Whatever it owns is given to it (mp_block_give), and goes with it
 * (mp_queue_take_down). The parts:
 *
 *   queue.c     the lock, the token, repair, how many messages there are
 *   send.c      which way a message goes
 *   receive.c   in which order they come
 *   shutdown.c  what becomes of a queue that was shut down
 *   spill.c     messages that the kernel queue has no room for: FIFOs in the arena, one for each priority level
 *   pieces.c    pieces of shared memory: large messages, and the chunks of the spill; space.c: the segments they are cut from
 *   rooms.c     where putters, getters and joiners wait
 *   watch.c     a file descriptor that tells whether there is a message */
#ifndef MPIPC_QUEUE_H
#define MPIPC_QUEUE_H

#include "queue_view.h"
#include "waits.h"

int mp_queue_make(struct mp_family *f, uint32_t index, uint64_t maxsize, uint32_t flags);
int mp_queue_open(struct mp_queue_view *v, struct mp_family *f, uint32_t index);
int mp_queue_mend(struct mp_family *f, uint32_t index);
void mp_queue_end_mending(struct mp_family *f);
void mp_queue_close(struct mp_queue_view *v);
int mp_queue_try_send(struct mp_queue_view *v, struct mp_message *m, uint32_t length, uint32_t level);
int mp_queue_send(struct mp_queue_view *v, struct mp_message *m, uint32_t length, uint32_t level, int64_t deadline_ns);
uint64_t mp_queue_send_many(struct mp_queue_view *v, const unsigned char *bodies, uint64_t count, uint32_t level,
                            int64_t deadline_ns, int *outcome);
int mp_queue_try_take(struct mp_queue_view *v, struct mp_item *item);
int mp_queue_take(struct mp_queue_view *v, struct mp_item *item, int64_t deadline_ns);
void mp_queue_return_token(struct mp_queue_view *v, struct mp_item *item);
int mp_queue_take_many(struct mp_queue_view *v, struct mp_item *items, uint32_t most, uint32_t *count, int64_t deadline_ns);
int mp_queue_await(struct mp_queue_view *v, struct mp_item *item);
int mp_queue_lock(struct mp_queue_view *v, int64_t deadline_ns);
int64_t mp_queue_soon(void);
void mp_queue_unlock(struct mp_queue_view *v);
int64_t mp_queue_size(struct mp_queue_view *v);
int64_t mp_queue_room(struct mp_queue_view *v);
int mp_queue_shutdown(struct mp_queue_view *v, bool immediate, int64_t deadline_ns);
int mp_queue_task_done(struct mp_queue_view *v, int64_t deadline_ns);
int64_t mp_queue_unfinished(struct mp_queue_view *v, int64_t deadline_ns);
const char *mp_queue_purpose(struct mp_block *b, const struct mp_waiting *waiting);
void mp_queue_take_down(struct mp_family *f, uint32_t index);
void mp_queue_recover(struct mp_family *f, uint32_t index, const uint64_t *dead);
void mp_queue_trim(struct mp_family *f, uint32_t index, int64_t idle_ns);
void mp_queue_heal(struct mp_family *f, uint32_t index);

#endif
