# SPDX-License-Identifier: Apache-2.0
"""Runs tests by Twisted's trial: run.py FILE, or one test: run.py MODULE.CLASS.TEST. Exit status 77 without Buildbot."""

import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))


def main():
    try:
        import buildbot  # noqa: F401
        import buildbot_worker  # noqa: F401
        import setuptools  # noqa: F401
        import twisted.trial  # noqa: F401
    except ImportError as error:
        print(f"skipped: {error}; Debian's packages buildbot, buildbot-worker and python3-setuptools have it")
        return 77
    os.environ["PYTHONPATH"] = os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])
    os.environ["SQLALCHEMY_SILENCE_UBER_WARNING"] = "1"  # Buildbot's own queries deprecate something in each version
    (tests,) = sys.argv[1:]
    if tests.endswith(".py"):
        tests = os.path.join(HERE, tests)
    # trial's log and its temporary files, which it otherwise leaves where it is called
    with tempfile.TemporaryDirectory(prefix="stepstash-trial-") as directory:
        command = [sys.executable, "-B", "-m", "twisted.trial", "--temp-directory", directory + "/trial", tests]
        return subprocess.run(command, cwd=directory).returncode


if __name__ == "__main__":
    sys.exit(main())
