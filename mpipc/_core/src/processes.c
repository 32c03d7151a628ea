/* Processes, as /proc and kill(2) know them: who is there, since when, in which pid namespace. */
#include "processes.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Is /proc that of this process's pid namespace? It need not have been mounted there. */
static bool proc_is_ours(void) {
    char text[32];
    ssize_t n = readlink("/proc/self", text, sizeof text - 1);
    if (n <= 0)
        return false;
    text[n] = 0;
    return strtol(text, NULL, 10) == (long)getpid();
}

/* Start time of a process in clock ticks since boot, field 22 of /proc/PID/stat; 0 if there is no such process, if it is a
 * zombie, or if that cannot be seen. The command name may hold blanks and brackets, so fields are counted from the last ')'. */
uint64_t mp_process_start_time(pid_t pid) {
    char path[32], text[1024];
    if (!proc_is_ours())
        return 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
        return 0;
    text[n] = 0;
    char *p = strrchr(text, ')');
    if (p == NULL || p[1] == 0 || p[2] == 'Z' || p[2] == 'X')
        return 0;
    p += 2;
    for (int field = 3; field < 22 && p != NULL; field++)
        p = strchr(p + 1, ' ');
    return p == NULL ? 0 : strtoull(p, NULL, 10);
}

/* Of a process of this pid namespace. A zombie is gone: it will not do anything any more. */
bool mp_process_gone(pid_t pid) {
    if (pid <= 0 || (kill(pid, 0) < 0 && errno == ESRCH))
        return true;
    return mp_process_start_time(pid) == 0 && mp_process_start_time(getpid()) != 0;
}

/* Its inode number; MP_PID_NS_UNKNOWN if it cannot be told. */
uint32_t mp_pid_namespace(void) {
    struct stat st;
    return stat("/proc/self/ns/pid", &st) == 0 && st.st_ino > MP_PID_NS_UNKNOWN ? (uint32_t)st.st_ino : MP_PID_NS_UNKNOWN;
}

/* May the pid in this slot's word mean another process here? So it is as long as its writer has not noted his namespace. */
bool mp_slot_is_foreign(struct mp_family *f, int slot) {
    uint32_t theirs = atomic_load(&f->seg->slots[slot].pid_ns);
    return theirs != f->pid_ns && theirs != MP_PID_NS_UNKNOWN && f->pid_ns != MP_PID_NS_UNKNOWN;
}

/* Has a process the segment attached? 1, 0, or -1: that cannot be seen (it is gone, or not ours to look at). A program that
 * was executed in the place of a member has not. Runs in any thread of any program, so without malloc(3) and with little stack. */
int mp_process_attached(pid_t pid, int shmid) {
    char path[32], text[4096];
    size_t kept = 0;
    ssize_t got;
    int answer = -1;
    snprintf(path, sizeof path, "/proc/%d/maps", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    while (answer != 1 && (got = read(fd, text + kept, sizeof text - 1 - kept)) > 0) {
        text[kept + (size_t)got] = 0;
        answer = 0;
        char *line = text, *end;
        while ((end = strchr(line, '\n')) != NULL) {
            long inode = -1; /* of System V segments, their id */
            *end = 0;
            if (strstr(line, " /SYSV") != NULL && sscanf(line, "%*s %*s %*s %*s %ld", &inode) == 1 && inode == shmid)
                answer = 1;
            line = end + 1;
        }
        kept = strlen(line); /* the beginning of the next line */
        if (kept == sizeof text - 1)
            kept = 0; /* of a line as long as this nothing is wanted */
        memmove(text, line, kept);
    }
    close(fd);
    return answer;
}

/* Its effective user id. False: it cannot be seen. */
bool mp_process_euid(pid_t pid, uint32_t *uid) {
    char path[32], text[4096];
    if (!proc_is_ours())
        return false;
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    text[n > 0 ? n : 0] = 0;
    char *line = strstr(text, "\nUid:"); /* a newline in the program's name is escaped there */
    return line != NULL && sscanf(line, "\nUid: %*u %" SCNu32, uid) == 1;
}

/* Could this process, or what it starts, become another user? */
bool mp_process_may_change_user(void) {
    uid_t real, effective, saved;
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{0}};
    if (getresuid(&real, &effective, &saved) != 0 || effective == 0 || real != effective || saved != effective)
        return true;
    return syscall(SYS_capget, &header, data) != 0 || (data[0].permitted >> CAP_SETUID & 1) != 0;
}
