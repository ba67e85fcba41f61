# SPDX-License-Identifier: Apache-2.0
"""Buildbot's build data in stepstash: in master.cfg,

    from stepstash.buildbot import StepstashService
    c["services"] = [StepstashService()]

docs/buildbot.md says what changes by that. Importing this package imports Buildbot and Twisted; `import stepstash` alone
does not.
"""

from .connector import BuildDataConnector
from .service import StepstashService
from .steps import BuildDataFromWorkerFile, BuildDataToWorkerFile, GetBuildData, SetBuildData, environment

__all__ = [
    "BuildDataConnector",
    "BuildDataFromWorkerFile",
    "BuildDataToWorkerFile",
    "GetBuildData",
    "SetBuildData",
    "StepstashService",
    "environment",
]
