# SPDX-License-Identifier: Apache-2.0
"""What the tests of the connector share: the real daemon, and Buildbot's real database without a master around it."""

from types import SimpleNamespace

from buildbot.db.connector import DBConnector
from buildbot.util import service
from twisted.internet import defer, reactor
from twisted.trial import unittest

from daemon import Daemon  # tests/python; also names the library


class _Master(service.MasterService):
    """As much of a master as a DBConnector needs."""

    def __init__(self, db_url):
        super().__init__()
        self.reactor = reactor
        self.basedir = "."
        self.config = SimpleNamespace(db={"db_url": db_url})
        self.caches = SimpleNamespace(get_cache=lambda name, miss: None)


class Database:
    """Buildbot's DBConnector over SQLite, in memory or in a file, as a master has it, with rows in the table builds."""

    @classmethod
    @defer.inlineCallbacks
    def create(cls, db_url="sqlite://"):
        self = cls()
        master = _Master(db_url)
        self.db = DBConnector(".")
        if hasattr(self.db, "set_master"):  # Buildbot 4
            if hasattr(self.db, "configured_url"):  # until 4.2
                self.db.configured_url = db_url
            else:
                from buildbot.config.master import DBConfig

                self.db.configured_db_config = DBConfig(db_url)
            yield self.db.set_master(master)
        else:
            yield self.db.setServiceParent(master)
        yield self.db.setup(check_version=False)
        yield self.db.model.upgrade()
        return self

    def close(self):
        pool = self.db.pool
        return pool.shutdown() if hasattr(pool, "shutdown") else pool.stop()  # Buildbot 3 and 4

    def _execute(self, statement):
        def thd(connection):
            connection.execute(statement)
            if hasattr(connection, "commit"):
                connection.commit()

        return self.db.pool.do(thd)

    def add_build(self, number, complete_at=None):
        row = dict(id=number, number=number, builderid=1, buildrequestid=1, masterid=1, started_at=1, state_string="")
        if "locks_duration_s" in self.db.model.builds.c:  # Buildbot 4
            row["locks_duration_s"] = 0
        return self._execute(self.db.model.builds.insert().values(complete_at=complete_at, **row))

    def complete_build(self, number, complete_at):
        builds = self.db.model.builds
        return self._execute(builds.update().where(builds.c.id == number).values(complete_at=complete_at))


class WithDaemon(unittest.TestCase):
    """Each test has a daemon of its own: a prune concerns all builds."""

    timeout = 120

    def start_daemon(self, *options):
        self.daemon = Daemon(*options)
        self.addCleanup(self.daemon.stop)

    @defer.inlineCallbacks
    def make_database(self, db_url="sqlite://"):
        database = yield Database.create(db_url)
        self.addCleanup(database.close)
        return database
