/* All of the core, for the modules above it. */
#ifndef MPIPC_CORE_H
#define MPIPC_CORE_H

#include "blocks.h"
#include "barrier.h"
#include "bells.h"
#include "cells.h"
#include "event.h"
#include "fork.h"
#include "holders.h"
#include "kinds.h"
#include "launch.h"
#include "liveness.h"
#include "lock.h"
#include "named.h"
#include "objects.h"
#include "pieces.h"
#include "processes.h"
#include "queue.h"
#include "reaper.h"
#include "recovery.h"
#include "rooms.h"
#include "segment.h"
#include "semaphore.h"
#include "sets.h"
#include "slots.h"
#include "space.h"
#include "spill.h"
#include "sweep.h"
#include "tick.h"
#include "watch.h"

#endif
