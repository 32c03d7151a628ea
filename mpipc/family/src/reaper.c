/* mpipc-reaper SHMID NONCE: cleans up after the processes of one family, and ends with it. See launch.c, recovery.c. */
#include "family.h"

#include <stdlib.h>

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    return mp_reaper_main(atoi(argv[1]), strtoull(argv[2], NULL, 16));
}
