/* mpipc-reaper SHMID: cleans up after the processes of one family, and ends with it. See reaper.c. The family's nonce
 * stands in the environment, where no other user can read it. */
#include "reaper.h"

#include <stdlib.h>

int main(int argc, char **argv) {
    const char *nonce = getenv(MP_NONCE_VARIABLE);
    if (argc != 2 || nonce == NULL)
        return 2;
    return mp_reaper_main(atoi(argv[1]), strtoull(nonce, NULL, 16));
}
