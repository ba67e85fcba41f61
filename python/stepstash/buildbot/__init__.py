# SPDX-License-Identifier: Apache-2.0
"""Buildbot's build data in stepstash. Importing this package imports Buildbot and Twisted; `import stepstash` alone does
not."""

from .connector import BuildDataConnector

__all__ = ["BuildDataConnector"]
