# SPDX-License-Identifier: Apache-2.0
"""The one line in master.cfg."""

import datetime

from buildbot import config
from buildbot.util import datetime2epoch, service
from twisted.internet import defer
from twisted.python import log

from .connector import BuildDataConnector


class StepstashService(service.BuildbotService):
    """Keeps the master's build data in stepstash for as long as master.cfg has it in c['services'].

    `socket_path` None means $STEPSTASH_SOCKET, or the usual places. `deadline`, in seconds, bounds each call to the
    daemon. A reconfiguration may add it, remove it and change both.

    The daemon need not run when the master starts: calls fail until it does.
    """

    name = "stepstash"
    _connector = None
    _finished_builds = None

    def checkConfig(self, socket_path=None, deadline=10.0):
        if not isinstance(socket_path, (str, type(None))):
            config.error(f"StepstashService: socket_path is a path as str, not {socket_path!r}")
        if not isinstance(deadline, (int, float)) or not deadline > 0:
            config.error(f"StepstashService: deadline is a number of seconds above 0, not {deadline!r}")

    @defer.inlineCallbacks
    def reconfigService(self, socket_path=None, deadline=10.0):
        """Also the first configuration, before startService() ends."""
        database = self.master.db
        former, self._connector = self._connector, BuildDataConnector(database, socket_path, deadline)
        if former is None:
            self._stock = database.build_data
        if hasattr(self._connector, "setServiceParent"):  # from Buildbot 4 on
            yield self._connector.setServiceParent(database)
        database.build_data = self._connector
        where = "the daemon of the usual places" if socket_path is None else f"the daemon at {socket_path}"
        checked = self._connector.check()
        checked.addCallbacks(
            lambda stats: log.msg(f"stepstash: build data is kept by {where}"),
            lambda failure: log.msg(f"stepstash: no build data until this is solved: {failure.getErrorMessage()}"),
        )
        if former is not None:
            yield self._end(former)

    @defer.inlineCallbacks
    def startService(self):
        yield super().startService()
        self._finished_builds = yield self.master.mq.startConsuming(self._build_finished, ("builds", None, "finished"))

    @defer.inlineCallbacks
    def stopService(self):
        yield super().stopService()
        if self._finished_builds is not None:
            consumer, self._finished_builds = self._finished_builds, None
            yield consumer.stopConsuming()
        connector, self._connector = self._connector, None
        if connector is not None:
            if self.master.db.build_data is connector:
                self.master.db.build_data = self._stock
            yield self._end(connector)

    @defer.inlineCallbacks
    def _end(self, connector):
        if hasattr(connector, "disownServiceParent"):
            yield connector.disownServiceParent()
        yield connector.close()

    def _build_finished(self, _, build):
        if self._connector is None:
            return None
        complete_at = build["complete_at"]
        if isinstance(complete_at, datetime.datetime):
            complete_at = datetime2epoch(complete_at)
        told = self._connector.setBuildComplete(build["buildid"], complete_at)
        # deleteOldBuildData finds in Buildbot's database what was missed here.
        told.addErrback(
            lambda failure: log.msg(
                f"stepstash: the daemon was not told that build {build['buildid']} completed: {failure.getErrorMessage()}"
            )
        )
        return told
