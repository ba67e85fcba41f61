# SPDX-License-Identifier: Apache-2.0
"""Steps that set and read build data, and what a command on the worker needs to do it by itself."""

import json
import os
import shutil
import tempfile

from buildbot.plugins import util
from buildbot.process import remotecommand
from buildbot.process.buildstep import BuildStep
from buildbot.process.results import CANCELLED, FAILURE, SUCCESS
from buildbot.steps import transfer
from twisted.internet import defer, threads

from .connector import BuildDataConnector


@util.renderer
def _build(props):
    return str(props.getBuild().buildid)


def environment(socket_path=None):
    """For `env=` of a ShellCommand: in it, `stepstash set NAME FILE` and `stepstash get NAME` mean this build.

    `socket_path` is the daemon's on the worker; None leaves it to $STEPSTASH_SOCKET there, or the usual places."""
    variables = {"STEPSTASH_BUILD": _build}
    if socket_path is not None:
        variables["STEPSTASH_SOCKET"] = socket_path
    return variables


class SetBuildData(BuildStep):
    """Sets a build datum to `value`, bytes or text, which is encoded in UTF-8."""

    name = "set build data"
    renderables = ["data_name", "value", "source"]

    def __init__(self, data_name, value, source="SetBuildData", **kwargs):
        super().__init__(**kwargs)
        self.data_name, self.value, self.source = data_name, value, source

    @defer.inlineCallbacks
    def run(self):
        value = self.value.encode() if isinstance(self.value, str) else self.value
        yield self.setBuildData(self.data_name, value, self.source)
        self.descriptionDone = [f"{self.data_name}: {len(value)} bytes"]
        return SUCCESS


class GetBuildData(BuildStep):
    """Sets the property `property_name` to a build datum, as text. Fails if there is none."""

    name = "get build data"
    renderables = ["data_name", "property_name"]

    def __init__(self, data_name, property_name, **kwargs):
        super().__init__(**kwargs)
        self.data_name, self.property_name = data_name, property_name

    @defer.inlineCallbacks
    def run(self):
        row = yield self.master.db.build_data.getBuildData(self.build.buildid, self.data_name)
        if row is None:
            self.descriptionDone = [f"{self.data_name}: no such build data"]
            return FAILURE
        value = row["value"] if isinstance(row, dict) else row.value
        self.setProperty(self.property_name, value.decode(), "GetBuildData")
        return SUCCESS


class _WithWorkersDaemon:
    """For a transfer step: where the worker reaches the master's own daemon, a command there does it, and the value does
    not go through the master. What the command cannot do, Buildbot's transfer does, or says why not: it makes
    directories, knows `~` and a largest size, and needs no rights of the worker's user."""

    _interrupted = False

    def interrupt(self, reason):
        self._interrupted = True  # a transfer step goes on when its command has ended
        return super().interrupt(reason)

    @defer.inlineCallbacks
    def _transferred(self, command, answers, through_master):
        """`command` is the whole command line for the worker, `answers` are the exit statuses with which it has done or
        knows it. `through_master` takes the connector and a path for a file on the master."""
        connector = self.master.db.build_data
        if not isinstance(connector, BuildDataConnector):
            yield self.addCompleteLog("stderr", "this step needs StepstashService in c['services']")
            return FAILURE
        environment = {} if connector.socket_path is None else {"STEPSTASH_SOCKET": connector.socket_path}
        done = None
        if (yield self._same_daemon(connector, environment)):
            log = yield self.addLog("stepstash")
            remote = remotecommand.RemoteShellCommand(self.workdir, command, env=environment, logEnviron=False)
            remote.useLog(log, True, "stdio")
            yield self.runCommand(remote)
            done = remote.rc
        if self._interrupted:
            return CANCELLED
        if done in answers:
            way = "by the worker itself"
            results = SUCCESS if done == 0 else FAILURE
        else:
            way = "through the master"
            directory = tempfile.mkdtemp(prefix="stepstash-", dir=self.master.basedir)
            try:
                results = yield through_master(connector, os.path.join(directory, "value"))
            finally:
                yield threads.deferToThread(shutil.rmtree, directory, ignore_errors=True)
        self.descriptionDone = [f"{self.data_name}: {way}"]
        return results

    @defer.inlineCallbacks
    def _same_daemon(self, connector, environment):
        """Whether `stepstash` on the worker reaches the very process that the master does. Not so on another host, with
        another socket, without the command, or without the right to read the figures."""
        if self.maxsize is not None:
            return False
        ours = yield connector.check()
        probe = remotecommand.RemoteShellCommand(
            self.workdir,
            ["stepstash", "stats", "--json", "--timeout", "1s"],
            env=environment,
            collectStdout=True,
            collectStderr=True,
            stdioLogName=None,
            logEnviron=False,
        )
        yield self.runCommand(probe)
        try:
            return probe.rc == 0 and _identity(json.loads(probe.stdout)) == _identity(ours)
        except (ValueError, LookupError, TypeError):  # a command of another version, or that is only called so
            return False


def _file(path):
    """On a command line, where "-" is none."""
    return "./-" if path == "-" else path


def _identity(stats):
    """Of one run of one daemon: the times of its start are told to the nanosecond."""
    return stats["pid"], stats["last_recovery"]


class BuildDataFromWorkerFile(_WithWorkersDaemon, transfer.FileUpload):
    """Sets a build datum to the content of a file on the worker. Further arguments are those of FileUpload; `maxsize`
    makes it go through the master."""

    name = "build data from file"
    renderables = ["data_name", "source"]

    def __init__(self, workersrc, data_name, source="BuildDataFromWorkerFile", **kwargs):
        super().__init__(workersrc=workersrc, masterdest="", **kwargs)
        self.data_name, self.source = data_name, source

    def run(self):
        command = ["stepstash", "set", "--build", str(self.build.buildid), "--source", self.source, "--"]
        return self._transferred([*command, self.data_name, _file(self.workersrc)], {0}, self._through_master)

    @defer.inlineCallbacks
    def _through_master(self, connector, path):
        self.masterdest = path
        results = yield super().run()
        if results == SUCCESS:
            yield connector.setBuildDataFromFile(self.build.buildid, self.data_name, path, self.source)
        return results


class BuildDataToWorkerFile(_WithWorkersDaemon, transfer.FileDownload):
    """Writes a build datum into a file on the worker. Fails if there is none. Further arguments are those of
    FileDownload; `mode` and `maxsize` make it go through the master."""

    name = "build data to file"
    renderables = ["data_name"]

    def __init__(self, data_name, workerdest, **kwargs):
        super().__init__(mastersrc="", workerdest=workerdest, **kwargs)
        self.data_name = data_name

    def run(self):
        command = ["stepstash", "get", "--build", str(self.build.buildid), "--output", _file(self.workerdest)]
        return self._transferred([*command, "--", self.data_name], {0, 1}, self._through_master)

    @defer.inlineCallbacks
    def _same_daemon(self, connector, environment):
        return self.mode is None and (yield super()._same_daemon(connector, environment))

    @defer.inlineCallbacks
    def _through_master(self, connector, path):
        found = yield connector.getBuildDataIntoFile(self.build.buildid, self.data_name, path)
        if not found:
            yield self.addCompleteLog("stderr", f"build {self.build.buildid} has no {self.data_name!r}")
            return FAILURE
        self.mastersrc = path
        return (yield super().run())
