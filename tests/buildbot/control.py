# SPDX-License-Identifier: Apache-2.0
"""A service in the tested master: it does what the test asks for through a socket, one JSON text a line.

    {"call": "force", "arguments": ["builder"]}   ->   {"result": ...} or {"error": "..."}
"""

import collections
import datetime
import hashlib
import importlib.util
import json
import sys
import threading
import types

from buildbot.util import datetime2epoch, service
from twisted.internet import defer, endpoints, protocol, reactor
from twisted.protocols import basic


# Buildbot 4.2.1 takes every master for one under test (buildbot/monkeypatches), and then imports this wherever it reads
# a log; Debian 13's package lacks it.
if importlib.util.find_spec("buildbot.test") is None:
    for name in ("buildbot.test", "buildbot.test.fake", "buildbot.test.fake.reactor"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules[name].NonThreadPool = type("NonThreadPool", (), {})


def plain(value):
    """What JSON can say. Values are told by their hash: they are large."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, collections.UserList)):
        return [plain(item) for item in value]
    if isinstance(value, datetime.datetime):
        return datetime2epoch(value)
    if isinstance(value, bytes):
        return {"length": len(value), "sha256": hashlib.sha256(value).hexdigest()}
    return value


class Connection(basic.LineReceiver):
    delimiter = b"\n"

    def lineReceived(self, line):
        request = json.loads(line)
        d = defer.maybeDeferred(getattr(self.factory.control, "do_" + request["call"]), *request["arguments"])
        d.addCallback(lambda result: json.dumps({"result": plain(result)}))
        d.addErrback(lambda failure: json.dumps({"error": repr(failure.value)}))
        d.addCallback(lambda answer: self.sendLine(answer.encode()))


class Control(service.BuildbotService):
    name = "control"

    def reconfigService(self, path):
        self.path = path

    @defer.inlineCallbacks
    def startService(self):
        yield super().startService()
        factory = protocol.Factory.forProtocol(Connection)
        factory.control = self
        self.port = yield endpoints.UNIXServerEndpoint(reactor, self.path).listen(factory)

    @defer.inlineCallbacks
    def stopService(self):
        yield self.port.stopListening()
        yield super().stopService()

    @defer.inlineCallbacks
    def do_force(self, builder):
        """The number of the build request."""
        builderid = yield self.master.data.updates.findBuilderId(builder)
        _, requests = yield self.master.data.updates.addBuildset(
            waited_for=False,
            scheduler="control",
            reason="the test",
            sourcestamps=[dict(codebase="", repository="", branch=None, revision=None, project="")],
            builderids=[builderid],
        )
        return requests[builderid]

    def do_stop(self, build):
        return self.master.data.control("stop", {"reason": "the test"}, ("builds", build))

    def do_get(self, path):
        return self.master.data.get(tuple(path))

    def do_set(self, build, name, text):
        return self.master.data.updates.setBuildData(build, name, text.encode(), "control")

    def do_state(self):
        threads = [thread.name for thread in threading.enumerate() if "stepstash" in thread.name]
        return {"connector": type(self.master.db.build_data).__module__, "threads": len(threads)}
