# SPDX-License-Identifier: Apache-2.0
"""For the steps of a build: what a command on the worker needs."""

from buildbot.plugins import util


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
