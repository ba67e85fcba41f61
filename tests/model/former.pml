/* SPDX-License-Identifier: Apache-2.0 */
/* A former segment, for spin: a client that has attached to another one gives the memory of the former one back, once
 * no pin of its page is in use, while another thread of it is in a get there, or gives up its last view. No view is
 * ever open in memory that was given back; and in the end it is given back, whoever was last.
 *
 * Memory is x86's, as in pins.pml: the getting thread has a store buffer; a fence or a locked instruction waits until
 * it is empty. The thread that attaches stores with a locked instruction each time.
 *
 * Each macro takes out what the step it is named after is there for; model_test.sh demands that spin finds the harm:
 *   NO_READER_FENCE          shm/reader.cpp, claim_in: the pin is claimed by a sequentially consistent exchange
 *   NO_FENCE_OF_READERS      with SCANNED: shm/reader.cpp, Reader::give_back: fence_readers()
 *   NO_STATE_IN_SECOND_LOOK  shm/reader.cpp, find_entry: the page's state is loaded again, after the claim
 *   SCAN_FIRST               shm/reader.cpp, Reader::give_back: supersede() comes before the look at the pins
 *   NO_LOOK_AFTER_RELEASE    libclient/client_c.cpp, stepstash_release: of_superseded_page(), after the pin's store
 *   NO_FENCE_OF_ALL          libclient/client.cpp, Client::attach: fence_all_threads()
 *   NO_LOOK_AGAIN            libclient/client.cpp, Attachment::give_back: pins_in_use() once more
 *   NO_HALF_OF_ITS_OWN       shm/layout.hpp, PageWord: the daemon writes another half of the state than the client
 * That the kernel may refuse what takes the memory's place is left out: then the memory stays for a while, too.
 * With SCANNED the page says ReaderFence::scanned: a claim is a plain store.
 * With BEST_EFFORT the kernel has no fence of all threads: then memory may stay for a while, and the rest has to hold.
 */

#define THERE 0
#define LOOKED_AT 1
#define GIVEN_BACK 2

byte state;   /* PinPage::state, the client's half: 1 is left */
byte closed;  /* the daemon's half */
byte pin;     /* of the page, in memory */
byte memory;  /* Attachment::memory */
bool in_view; /* the bytes of the former segment may be looked at */
byte over;    /* threads that are through */

chan of_reader = [2] of {byte}; /* its stores to its pin */

active proctype reader_stores() {
  byte value;
end:
  do
  :: atomic { of_reader?value -> pin = value; value = 0 }
  od
}

/* Attachment::give_back */
inline give_back() {
  do
  :: atomic { memory == THERE -> memory = LOOKED_AT } /* compare_exchange_strong */
#ifdef SCAN_FIRST
     seen = pin;
     state = 1;
#else
     state = 1;                                       /* Reader::supersede */
#if defined(SCANNED) && !defined(NO_FENCE_OF_READERS)
     empty(of_reader);                                /* fence_readers() */
#endif
     seen = pin;                                      /* pins_in_use() */
#endif
     if
     :: seen == 0 -> atomic { assert(!in_view); memory = GIVEN_BACK }
     :: else ->
        memory = THERE;
#ifdef NO_LOOK_AGAIN
        break
#else
        if
        :: pin == 0
        :: else -> break
        fi
#endif
     fi
  :: atomic { memory != THERE -> break }
  od;
  seen = 0
}

/* A get, its view, and its release. */
active proctype reader() {
  byte seen;
  if
  :: state != 0 || closed -> goto superseded          /* find_entry: page.state, both halves at once */
  :: else
  fi;
  of_reader!1;                                        /* claim_in */
#if !defined(NO_READER_FENCE) && !defined(SCANNED)
  empty(of_reader);
#endif
  if
#ifndef NO_STATE_IN_SECOND_LOOK
  :: state != 0 || closed -> of_reader!0; goto superseded
#endif
  :: atomic {
#ifndef NO_STATE_IN_SECOND_LOOK
       state == 0 && !closed ->
#endif
       in_view = true;
       assert(memory != GIVEN_BACK)
     }
  fi;
  assert(memory != GIVEN_BACK);                       /* the bytes */
  atomic { in_view = false; of_reader!0 }             /* stepstash_release */
#ifndef NO_LOOK_AFTER_RELEASE
  if
  :: state == 1 ->                                    /* of_superseded_page(), without a fence */
     empty(of_reader);                                /* Reader::give_back: full_fence() */
     give_back()
  :: else
  fi;
#endif
  goto done;
superseded:
  empty(of_reader);
  give_back();                                        /* Client::get: give_back_formers() */
done:
  over++
}

/* Client::attach, with the next segment in hand. */
active proctype attacher() {
  byte seen;
#ifndef SCAN_FIRST
  state = 1;                                          /* former->reader.supersede() */
#endif
#if !defined(NO_FENCE_OF_ALL) && !defined(BEST_EFFORT)
  empty(of_reader);                                   /* fence_all_threads() */
#endif
  give_back();
  over++
}

/* PinRegistry::close and open: the daemon knows nothing yet of the other segment, or is another one's. */
active proctype daemon() {
#ifdef NO_HALF_OF_ITS_OWN
  if
  :: state == 0 -> state = 2
  :: else
  fi;
  if
  :: state == 2 -> state = 0
  :: else
  fi
#else
  closed = 1;
  closed = 0
#endif
}

#ifndef BEST_EFFORT
/* When nobody is at it any more. */
active proctype judge() {
  atomic { over == 2 && empty(of_reader) -> assert(memory == GIVEN_BACK) }
}
#endif
