# SPDX-License-Identifier: Apache-2.0
"""The walked example of CONTRIBUTING.md, "add a figure to `stats`", as tests/docs/example.patch.

    example.py SOURCE_DIR                    the patch applies to the tree, and the page names its files in their order
    example.py SOURCE_DIR --build SCRATCH    in a copy of the tree with the patch, the changed unit test builds and passes
    example.py SOURCE_DIR --refresh          refreshes the patch if only the lines around it have changed

Exit status 77: git or patch is not installed.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

# The repository around it is not asked: git refuses one that is somebody else's, as it may be in a container.
NO_REPOSITORY = os.environ | {"GIT_DIR": "/nonexistent"}
TARGET, SUITE = "stepstash_daemon_tests", "metrics"
STALE = """
The example of CONTRIBUTING.md no longer fits the tree: somebody changed the lines around it, and that is fine.
Make it fit again, and commit it with your change:
    python3 tests/docs/example.py . --refresh      where only the lines around it have changed
If that cannot do it, edit a clean tree as CONTRIBUTING.md says ("A walked example") and write the difference:
    git diff -U1 -- FILE... | sed '/^index /d' > tests/docs/example.patch     the files in the order of the page
    git checkout -- FILE...
"""


def run(*command, **options):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def files_of(patch):
    return re.findall(r"^\+\+\+ b/(.+)$", patch.read_text(), re.MULTILINE)


def added_lines(patch):
    return {line[1:].strip() for line in patch.read_text().splitlines() if re.match(r"\+(?!\+\+)", line)}


def page_problems(page, patch):
    """What the walk says and the patch does not do."""
    section = re.search(r"^## A walked example.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    if section is None:
        return ['CONTRIBUTING.md has no section "A walked example"']
    problems = []
    named = re.findall(r"^\d+\. `([^`]+)`", section[0], re.MULTILINE)
    if named != files_of(patch):
        problems.append(f"CONTRIBUTING.md walks through {named}, the patch through {files_of(patch)}")
    for block in re.findall(r"^ *```diff\n(.*?)^ *```$", section[0], re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.strip().startswith("+") and line.strip()[1:].strip() not in added_lines(patch):
                problems.append(f"CONTRIBUTING.md shows a line that the patch does not add: {line.strip()[1:]}")
    return problems


def copy_of(source, made):
    ignored = shutil.ignore_patterns("build", ".git", "quickstart-data", "corpus", "__pycache__")
    shutil.copytree(source, made, ignore=ignored)


def check(source, patch):
    problems = page_problems((source / "CONTRIBUTING.md").read_text(), patch)
    applied = run("git", "apply", "--check", str(patch), cwd=source, env=NO_REPOSITORY)
    if applied.returncode != 0:
        problems.append(applied.stdout.rstrip() + STALE)
    return problems


def build(source, patch, scratch):
    shutil.rmtree(scratch, ignore_errors=True)
    tree = scratch / "tree"
    copy_of(source, tree)
    flags = "-O0 -g0"  # it is asked whether it compiles and passes
    steps = [
        ["git", "apply", str(patch)],
        ["cmake", "-S", ".", "-B", "build", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=None", f"-DCMAKE_CXX_FLAGS={flags}",
         "-DSTEPSTASH_WERROR=ON", "-DSTEPSTASH_CRASH_POINTS=OFF"],
        ["cmake", "--build", "build", "--target", TARGET],
        [f"build/tests/daemon/{TARGET}", f"--run_test={SUITE}"],
    ]  # fmt: skip
    try:
        for step in steps:
            done = run(*step, cwd=tree, env=NO_REPOSITORY)
            if done.returncode != 0:
                return [f"{' '.join(step)} failed in a copy of the tree with the patch:\n{done.stdout[-8000:]}{STALE}"]
        return []
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def refresh(source, patch):
    """patch(1) finds the lines again, where they are still there."""
    names = files_of(patch)
    with tempfile.TemporaryDirectory() as made:
        for side in "ab":
            for name in names:
                path = pathlib.Path(made, side, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / name, path)
        done = run("patch", "-p1", "--no-backup-if-mismatch", "-i", str(patch), cwd=pathlib.Path(made, "b"))
        print(done.stdout, end="")
        if done.returncode != 0:
            return ["patch(1) does not find the places any more" + STALE]
        text = ""
        for name in names:
            diff = run("diff", "-U1", f"--label=a/{name}", f"--label=b/{name}", f"a/{name}", f"b/{name}", cwd=made)
            text += f"diff --git a/{name} b/{name}\n" + diff.stdout
    patch.write_text(text)
    return check(source, patch)


def main(arguments):
    source = pathlib.Path(arguments[0]).resolve()
    patch = source / "tests" / "docs" / "example.patch"
    for tool in ["git"] + (["patch"] if "--refresh" in arguments else []):
        if shutil.which(tool) is None:
            print(f"{tool} is not installed", file=sys.stderr)
            return 77
    if "--refresh" in arguments:
        problems = refresh(source, patch)
    elif "--build" in arguments:
        problems = build(source, patch, pathlib.Path(arguments[2]).resolve())
    else:
        problems = check(source, patch)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
