/* What is known of processes, of this family or not. */
#ifndef MPIPC_PROCESSES_H
#define MPIPC_PROCESSES_H

#include "family.h"

#define MP_PID_NS_UNKNOWN 1u

#define MP_PID_NS_UNKNOWN 1u
uint64_t mp_process_start_time(pid_t pid);
bool mp_process_gone(pid_t pid);
uint32_t mp_pid_namespace(void);
bool mp_slot_is_foreign(struct mp_family *f, int slot);
int mp_process_attached(pid_t pid, int shmid);
bool mp_process_euid(pid_t pid, uint32_t *uid);
bool mp_process_may_change_user(void);

#endif
