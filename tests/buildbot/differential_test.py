# SPDX-License-Identifier: Apache-2.0
"""Random operations on Buildbot's own connector (over SQLite) and on ours: the same answers, including the counts.

Both use one real DBConnector, and so one table of builds. What may differ is not generated here, and has tests of its
own in connector_test.py: names or sources beyond 256 characters or with a NUL, builds below 1, None as a name or a
source (stock retries for ever), values whose items are not bytes (stock records the number of items), held builds.

STEPSTASH_SEED=N repeats a run; STEPSTASH_ROUNDS=N makes it longer.
"""

import os
import random

from support import WithDaemon  # first: it names the library

from stepstash.buildbot import BuildDataConnector
from twisted.internet import defer

STEPS = 250
NAMES = ["", "a", "A", "a ", "b", "name/with/slashes", "\u00e9", "e\u0301", "\U0001f600", "\uffee", "x" * 256]
SOURCES = ["", "unit tests", "\U0001f600" * 256]
# Of these, Buildbot's table has some from the start, some later, and some never.
BUILDS = [1, 2, 3, 4, 5, 6, 7, 2**31, 2**40]
ABSENT = [None, 77, "3", "77", "x", 0, -5]


def comparable(answer):
    if isinstance(answer, list):  # stock promises no order
        return sorted(comparable(row) for row in answer)
    if isinstance(answer, dict):  # up to Buildbot 4.0
        return sorted(answer.items())
    if hasattr(answer, "__dataclass_fields__"):
        return sorted(vars(answer).items())
    return answer


class Run:
    def __init__(self, seed, database, stock, ours, daemon):
        self.random = random.Random(seed)
        self.database, self.stock, self.ours, self.daemon = database, stock, ours, daemon
        self.known = {}  # complete_at of the builds in Buildbot's table
        self.deleted = self.rows = 0

    def build(self):
        return self.random.choice(BUILDS)

    def value(self):
        length = self.random.choice([0, 1, 100, 5000, 70000, 1 << 20])
        value = self.random.randbytes(length)
        return self.random.choice([bytes, bytearray, memoryview])(value)

    @defer.inlineCallbacks
    def both(self, method, *arguments):
        answers = []
        for connector in (self.stock, self.ours):
            try:
                answer = yield getattr(connector, method)(*arguments)
            except Exception as error:
                # SQLAlchemy wraps what the driver raised.
                answer = "failed: " + type(getattr(error, "orig", error)).__name__
            answers.append(comparable(answer))
        if answers[0] != answers[1]:
            raise AssertionError(f"{method}{arguments}: stock {answers[0]!r:.2000}, ours {answers[1]!r:.2000}")
        return answers[0]

    def set(self):
        return self.both("setBuildData", self.build(), self.random.choice(NAMES), self.value(), self.random.choice(SOURCES))

    def set_text(self):
        return self.both("setBuildData", self.build(), "text", "not bytes", "s")

    def get(self):
        build = self.random.choice(BUILDS + ABSENT)
        name = self.random.choice(NAMES + ["absent", "text", None])
        return self.both(self.random.choice(["getBuildData", "getBuildDataNoValue"]), build, name)

    @defer.inlineCallbacks
    def get_all(self):
        rows = yield self.both("getAllBuildDataNoValues", self.random.choice(BUILDS + ABSENT))
        self.rows += len(rows)

    @defer.inlineCallbacks
    def start_build(self):
        unknown = [build for build in BUILDS[:-2] if build not in self.known]
        if unknown:
            build = self.random.choice(unknown)
            self.known[build] = None
            yield self.database.add_build(build)

    @defer.inlineCallbacks
    def complete_build(self):
        running = [build for build, at in self.known.items() if at is None]
        if running:
            build = self.random.choice(running)
            at = self.known[build] = self.random.randrange(1000, 1010)
            yield self.database.complete_build(build, at)
            # The message of a build's end may not have reached the daemon; nor has it to be right.
            told = self.random.choice([at, at, None, self.random.randrange(1000, 1010)])
            if told is not None:
                yield self.ours.setBuildComplete(build, told)

    @defer.inlineCallbacks
    def finish_in_vain(self):
        """The daemon is told, say by `stepstash finish` in a step, of a build that goes on: Buildbot's table decides."""
        yield self.ours.setBuildComplete(self.build(), self.random.randrange(1000, 1010))

    @defer.inlineCallbacks
    def delete(self):
        some = self.random.randrange(1000, 1012)
        older_than = self.random.choice([0, some, some, some, some + 0.5, 1 << 33])
        self.deleted += yield self.both("deleteOldBuildData", older_than)

    def kill(self):
        self.daemon.kill()
        self.daemon.start()

    @defer.inlineCallbacks
    def go(self):
        weights = {
            self.set: 40, self.set_text: 2, self.get: 30, self.get_all: 15,
            self.start_build: 6, self.complete_build: 6, self.finish_in_vain: 3,
            self.delete: 6, self.kill: 1,
        }  # fmt: skip
        for _ in range(STEPS):
            (operation,) = self.random.choices(list(weights), weights.values())
            yield operation()
        for build in BUILDS:
            yield self.both("getAllBuildDataNoValues", build)
            for name in NAMES:
                yield self.both("getBuildData", build, name)


class Differential(WithDaemon):
    timeout = 600

    @defer.inlineCallbacks
    def one_run(self, seed, db_url):
        print(f"STEPSTASH_SEED={seed} over {db_url}", flush=True)
        self.start_daemon("--segment-size", "256MiB")
        database = yield self.make_database(db_url)
        ours = BuildDataConnector(database.db, self.daemon.socket)
        run = Run(seed, database, database.db.build_data, ours, self.daemon)
        try:
            yield run.go()
        except Exception:
            print(f"failed with STEPSTASH_SEED={seed}")
            raise
        finally:
            yield ours.close()
            self.flushLoggedErrors()  # Buildbot logs what a query raises, here of set_text
        return run

    @defer.inlineCallbacks
    def test_the_same_answers_as_buildbots_own_connector(self):
        first = int(os.environ.get("STEPSTASH_SEED", random.SystemRandom().randrange(2**31)))
        deleted = rows = 0
        for i in range(int(os.environ.get("STEPSTASH_ROUNDS", "6"))):
            seed = first + i
            url = ("sqlite://", f"sqlite:///{os.path.abspath(f'{seed}.sqlite')}")[seed % 2]
            run = yield self.one_run(seed, url)
            deleted, rows = deleted + run.deleted, rows + run.rows
        print(f"deleted {deleted} rows in all, listed {rows}")
        self.assertGreater(deleted, 0)
