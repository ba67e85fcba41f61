/* SPDX-License-Identifier: Apache-2.0 */
/* The pin protocol, for spin: no block is reused under a reader (I3), and a miss is an answer (L4, L5).
 *
 * One key, three blocks, two tables of one slot each, READERS clients with one pin each that look the key up LOOKUPS
 * times, one daemon that replaces, deletes, swaps tables, closes pages and opens them again, reclaims, reaps, is killed
 * at any step and is followed by another that attaches: OPERATIONS in all. The last of the clients is killed at any
 * step, too. spin walks through every order of the steps.
 *
 * Memory is x86's (and weaker than seq_cst): each processor has a store buffer, first in first out, that reaches memory
 * some time later; a fence or a locked instruction waits until it is empty. Loads happen in order. What a processor
 * without that order (arm64) could do besides is left to the acquire and release orders of the code, whose places the
 * comments below give.
 *
 * With SCANNED the pages say ReaderFence::scanned: a claim is a plain store, and the daemon, before it reads the pins,
 * makes each client's processor pass a fence.
 *
 * Each macro below takes out what the step it is named after is there for; model_test.sh demands that spin finds the
 * harm that each of them does:
 *   NO_READER_FENCE        shm/reader.cpp, claim_in: the pin is claimed by a sequentially consistent exchange
 *   NO_FENCE_OF_READERS    with SCANNED: shm/pins.cpp, PinRegistry::fence: fence_readers()
 *   NO_SECOND_LOOK         shm/reader.cpp, find_entry: slot and word are loaded again
 *   NO_WORD_IN_SECOND_LOOK the same: the word is loaded again, not the slot alone
 *   NO_WORD_AFTER_MISS     shm/reader.cpp, find_entry: a miss counts only with an unchanged word
 *   NO_VERSION             shm/layout.hpp, make_index_word: the word of a table that is used again is another one (the
 *                          code's comes round after 1024 swaps; docs/segment-layout.md says so)
 *   NO_WRITER_FENCE        shm/index.cpp: exchange and store are sequentially consistent; shm/pins.cpp, collect: the
 *                          full_fence() of shm/fence.hpp before the pages are read
 *   NO_SCAN                shm/segment_entries.cpp, Segment::reclaim: pins_.collect()
 *   SCAN_FIRST             the same: collect() after the stores that unpublish
 *   NO_SCAN_AFTER_ATTACH   shm/recovery.cpp, Segment::recover: pins_.collect()
 *   NO_ADOPTION            the same: pins_.adopt() finds the pages of the dead daemon's clients
 *   REAP_WITHOUT_LOCK      shm/pins.cpp, PinRegistry::reap: only pages whose lock is gone
 *   NO_STATE_IN_SECOND_LOOK  shm/reader.cpp, find_entry: the page's state is loaded again
 *   STATE_BEFORE_SLOT      the same: the state is loaded after slot and word are, not before them
 *   NO_CLOSINGS            shm/pins.cpp, PinRegistry::close: the state counts how often the page was closed, so that a
 *                          page that was closed and opened is told from one that was neither
 *   NO_CLOSE_FENCE         shm/pins.cpp, PinRegistry::close: the full_fence() between the states and the reading
 *   SCAN_BEFORE_CLOSE      the same: the pins that are honoured are read after the states are stored
 *   NO_HONOUR              shm/pins.cpp, PinRegistry::scan: what a closed page held when it was closed counts (if it
 *                          was the block of an entry then: a number that names a free one keeps nothing later)
 *   NO_HONOUR_AFTER_OPEN   shm/pins.cpp, PinRegistry::open: all pins count from before the state says that it serves
 */

#ifndef READERS
#define READERS 1
#endif
#ifndef OPERATIONS
#define OPERATIONS 4 /* of both daemons */
#endif
#ifndef LOOKUPS
#define LOOKUPS 2 /* of each client */
#endif

/* Blocks are 1, 2 and 3; 0 is none. Two bits, for the daemon reads a pin by a copy that may see it by half. */
#define IN(set, block) (((set) >> (block)) & 1)
#define TABLE(word) ((word) & 1)
#ifdef NO_CLOSINGS
#define CLOSED(state) 1
#define OPENED(state) 0
#else
#define CLOSED(state) ((state) + 3)
#define OPENED(state) ((state) & 254)
#endif
#ifdef NO_VERSION
#define NEXT(word) (1 - (word))
#else
#define NEXT(word) ((word) + 1)
#endif

/* ---- memory ---- */
byte slot[2];        /* of the two tables */
byte word;           /* header.index: how many tables there have been before, and so which of the two is current */
byte pin[READERS];   /* PinPage::lines */
byte shut[READERS];  /* PinPage::state: twice the number of closings, and 1 while it is closed */
bool object[READERS] = true; /* the page's object exists: segment.pin.N */
bool locked[READERS] = true; /* the kernel's lock on it: gone with the client */

/* ---- what must hold ---- */
byte holding[READERS];    /* a block whose bytes this client may look at now */
bool complete[4];         /* its entry is there as it was published */
bool was_absent[READERS]; /* since this client's look-up began, there was an instant without the key */

/* ---- store buffers ---- */
chan of_reader[READERS] = [2] of {byte};
chan of_daemon = [4] of {byte, byte}; /* place: 0 and 1 the slots, 2 the word, from 3 on the states; value */

bool daemon_killed, client_killed;

proctype reader_stores(byte me) {
  byte value;
end:
  do
  :: atomic { of_reader[me]?value -> pin[me] = value; value = 0 }
  od
}

active proctype daemon_stores() {
  byte place, value;
end:
  do
  :: atomic {
       of_daemon?place, value ->
       if
       :: place == 2 -> word = value
       :: place > 2 -> shut[place - 3] = value
       :: else -> slot[place] = value
       fi;
       if
       :: slot[TABLE(word)] == 0 -> was_absent[0] = true; was_absent[READERS - 1] = true
       :: else
       fi;
       place = 0; value = 0
     }
  od
}

/* ---- a client: find_entry and Pinned::release ---- */

/* A client whose page is closed is told so: this look-up is over, and says nothing about the key. */
inline look_up() {
  seen_state = shut[me];                                                 /* page.state.load(acquire) */
  if
  :: seen_state & 1 -> goto over
  :: else
  fi;
  atomic { was_absent[me] = (slot[TABLE(word)] == 0); seen_word = word } /* header.index.load(acquire) */
  seen = slot[TABLE(seen_word)];                                         /* here.load(acquire) */
  if
  :: seen == 0 ->
#ifdef NO_WORD_AFTER_MISS
     assert(was_absent[me])
#else
     if
     :: atomic { word == seen_word -> assert(was_absent[me]) }           /* header.index.load(acquire) == word */
     :: else -> goto again
     fi
#endif
  :: else ->
     of_reader[me]!seen;                                                 /* claim_in: exchange, or a store */
#if !defined(NO_READER_FENCE) && !defined(SCANNED)
     empty(of_reader[me]);                                               /* ... sequentially consistent */
#endif
#ifdef STATE_BEFORE_SLOT
     if
     :: shut[me] == seen_state
     :: else -> of_reader[me]!0; goto again
     fi;
#endif
#ifndef NO_SECOND_LOOK
     if
     :: slot[TABLE(seen_word)] == seen                                   /* here.load(seq_cst) */
     :: else -> of_reader[me]!0; goto again
     fi;
#endif
#if !defined(NO_SECOND_LOOK) && !defined(NO_WORD_IN_SECOND_LOOK)
     if
     :: word == seen_word                                                /* header.index.load(seq_cst) */
     :: else -> of_reader[me]!0; goto again
     fi;
#endif
     if
#if defined(NO_STATE_IN_SECOND_LOOK) || defined(STATE_BEFORE_SLOT)
     :: true ->
#else
     :: atomic { shut[me] == seen_state ->                               /* page.state.load(seq_cst) */
#endif
        holding[me] = seen;
        assert(complete[seen])                                           /* checked_entry, entry_name, the value */
#if !defined(NO_STATE_IN_SECOND_LOOK) && !defined(STATE_BEFORE_SLOT)
        }
     :: else -> of_reader[me]!0; goto again
#endif
     fi;
     atomic { holding[me] = 0; of_reader[me]!0 }                         /* Pinned::release: store(0, release) */
  fi;
over:
  atomic { seen = 0; seen_word = 0; seen_state = 0; was_absent[me] = false }
}

proctype client(byte me) {
  byte seen, seen_word, seen_state, lookups;
  {
    do
    :: lookups < LOOKUPS ->
       lookups++;
again: look_up()
    :: else -> break
    od
  } unless { me == READERS - 1 && client_killed };
  /* Dead, or gone: what it held nobody looks at any more, and the kernel drops the lock with its mapping. */
  atomic { holding[me] = 0; seen = 0; seen_word = 0; seen_state = 0; lookups = 0; was_absent[me] = false }
  atomic { empty(of_reader[me]) -> locked[me] = false }
}

/* ---- the daemon ---- */

#ifdef NO_WRITER_FENCE
#define daemon_fence() skip
#else
#define daemon_fence() empty(of_daemon)
#endif

/* PinRegistry::fence */
inline pages_fence() {
  daemon_fence();
#if defined(SCANNED) && !defined(NO_FENCE_OF_READERS)
  empty(of_reader[0]); /* one after the other: each passes its fence at some instant of the call */
  empty(of_reader[READERS - 1])
#endif
}

/* PinRegistry::scan: fence, then a copy of each page. What has changed in a closed page counts no longer. */
inline collect() {
  pages_fence();
  atomic { pinned = 0; r = 0 }
  do
  :: r < READERS ->
     if
     :: IN(pages, r) ->
        half = pin[r] & 1;
        atomic {
          half = half | (pin[r] & 2);
          if
          :: !IN(closed, r) || half == honoured[r] -> pinned = pinned | (1 << half)
          :: else -> honoured[r] = 0
          fi
        }
     :: else
     fi;
     r++
  :: else -> break
  od;
  atomic { half = 0; r = 0 }
#ifdef NO_HONOUR_AFTER_OPEN
  closed = closed & ~opening;
#endif
}

/* PinRegistry::close and open, of one page. */
inline honour() {
#ifdef NO_HONOUR
  honoured[c] = 0
#else
  half = pin[c] & 1;
  atomic {
    honoured[c] = half | (pin[c] & 2);
    if
    :: IN(unused, honoured[c]) -> honoured[c] = 0
    :: else
    fi;
    half = 0
  }
#endif
}

inline close_page() {
#ifdef SCAN_BEFORE_CLOSE
  honour();
#endif
  atomic { closed = closed | (1 << c); closings[c] = CLOSED(closings[c]); of_daemon!3 + c, closings[c] }
#ifndef NO_CLOSE_FENCE
  pages_fence();
#endif
#ifndef SCAN_BEFORE_CLOSE
  honour();
#endif
  c = 0
}

inline open_page() {
  atomic {
#ifdef NO_HONOUR_AFTER_OPEN
    opening = opening | (1 << c);
#else
    closed = closed & ~(1 << c); honoured[c] = 0;
#endif
    closings[c] = OPENED(closings[c]);
    of_daemon!3 + c, closings[c];
    c = 0
  }
}

inline free_block(block) {
  assert(holding[0] != block && holding[READERS - 1] != block);
  complete[block] = false;
  retired = retired & ~(1 << block);
  unused = unused | (1 << block)
}

/* What is neither retired nor published nor pinned may be cut anew. */
inline reclaim() {
  atomic {
    b = 1;
    do
    :: b <= 3 ->
       if
       :: IN(retired, b) && !IN(pinned, b) -> free_block(b)
       :: else
       fi;
       b++
    :: else -> break
    od;
    b = 0; pinned = 0
  }
}

/* IndexWriter::publish and erase: one store into the slot; Segment::retire what was there. */
inline exchange(block) {
  atomic {
    of_daemon!TABLE(mine), block;
    if
    :: here != 0 -> retired = retired | (1 << here)
    :: else
    fi;
    here = block
  }
  daemon_fence()
}

inline operate() {
  do
  :: operations < OPERATIONS ->
     if
     :: atomic {
          unused != 0 -> /* Store::publish */
          operations++;
          if
          :: IN(unused, 1) -> b = 1
          :: IN(unused, 2) -> b = 2
          :: IN(unused, 3) -> b = 3
          fi;
          unused = unused & ~(1 << b);
          complete[b] = true /* L9: before it is published */
        }
        exchange(b);
        b = 0
     :: atomic { here != 0 -> operations++ } /* Segment::erase */
        exchange(0)
     :: atomic { /* IndexWriter::rebuild, into a table that was used before */
          operations++;
          of_daemon!TABLE(NEXT(mine)), 0;
          of_daemon!TABLE(NEXT(mine)), here;
          of_daemon!2, NEXT(mine);
          mine = NEXT(mine)
        }
        daemon_fence()
     :: atomic { retired != 0 -> operations++ } /* Segment::reclaim */
#ifdef NO_SCAN
        pinned = 0;
#else
        collect();
#endif
        reclaim()
#ifdef SCAN_FIRST
     :: atomic { here != 0 -> operations++ }
        collect();
        exchange(0);
        reclaim()
#endif
     :: atomic { IN(pages, 0) && !IN(closed, 0) -> operations++; c = 0 }
        close_page()
     :: atomic { IN(pages, 0) && IN(closed, 0) -> operations++; c = 0 }
        open_page()
#if READERS > 1
     :: atomic { IN(pages, 1) && !IN(closed, 1) -> operations++; c = 1 }
        close_page()
     :: atomic { IN(pages, 1) && IN(closed, 1) -> operations++; c = 1 }
        open_page()
#endif
     :: atomic { pages != 0 -> operations++; r = 0 } /* PinRegistry::reap */
        do
        :: atomic {
             r < READERS ->
             if
#ifdef REAP_WITHOUT_LOCK
             :: IN(pages, r) -> pages = pages & ~(1 << r); object[r] = false
#else
             :: IN(pages, r) && !locked[r] -> pages = pages & ~(1 << r); object[r] = false
#endif
             :: else
             fi;
             r++
           }
        :: else -> break
        od;
        r = 0
     fi
  :: else -> break
  od
}

/* Segment::recover: in use is what the slot of the current table leads to (L8), and what is pinned. */
inline attach() {
  atomic {
    retired = 0; unused = 0; pinned = 0; pages = 0; r = 0; b = 0; half = 0; c = 0; closed = 0; opening = 0;
    honoured[0] = 0; honoured[READERS - 1] = 0;
    mine = word;
    here = slot[TABLE(mine)]
  }
#ifndef NO_ADOPTION
  do /* pins_.adopt(): the pages that somebody holds */
  :: atomic {
       r < READERS ->
       if
       :: object[r] && locked[r] ->
          pages = pages | (1 << r); /* it honours all of them */
          closings[r] = OPENED(shut[r]);
          of_daemon!3 + r, closings[r]
       :: object[r] && !locked[r] -> object[r] = false
       :: else
       fi;
       r++
     }
  :: else -> break
  od;
#endif
#ifndef NO_SCAN_AFTER_ATTACH
  collect();
#endif
  atomic {
    b = 1;
    do
    :: b <= 3 ->
       if
       :: b == here
       :: b != here && IN(pinned, b) -> retired = retired | (1 << b)
       :: else -> free_block(b)
       fi;
       b++
    :: else -> break
    od;
    b = 0; pinned = 0
  }
}

active proctype daemon() {
  byte mine, here, retired, unused, pinned, pages, operations, b, r, half;
  byte c, closed, opening, honoured[READERS]; /* pages that are closed, and what each held then */
  byte closings[READERS];                    /* what it has stored into shut */
  atomic {
    here = 3; slot[0] = 3; complete[3] = true;
    unused = 6; /* blocks 1 and 2 */
    pages = (1 << READERS) - 1;
    do
    :: r < READERS ->
       run reader_stores(r);
       run client(r);
       r++
    :: else -> break
    od;
    r = 0
  }
  {
    operate()
  } unless { daemon_killed };
  if
  :: daemon_killed ->
     /* What it had stored reaches memory: the store buffer is the processor's, not the process's. */
     empty(of_daemon);
     attach();
     operate()
  :: else
  fi
}

/* At any step, or never. */
active proctype killer() {
end:
  daemon_killed = true
}

active proctype client_killer() {
end:
  client_killed = true
}
