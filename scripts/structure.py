#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws who uses whom, and fails where that goes round in a circle.

    scripts/structure.py [--quiet] [ROOT]

An arrow is an #include, or a callback: a member `std::function<...> name;` that another file assigns calls into that
file, so it is an arrow that no #include shows. A file pair is X.hpp with X.cpp.

Looked at are the folders (no circle between them) and the file pairs of each folder (no circle either). What is there
today and should not be stands in KNOWN, each with its reason. The list is only to become shorter: an arrow that is not
in it fails, and so does a line of it that is no longer true.

tests/structure runs this, and plants circles to see them found.
"""

import pathlib
import re
import sys

FOLDERS = ("base", "shm", "persist", "protocol", "daemon", "libclient", "cli")

# (the pair the arrow begins at, what makes it, the pair it leads to): why it is there. Each closes a circle.
KNOWN = {
    ("daemon/flusher", "on_settled", "daemon/store"): "a batch has ended; the store wakes who waits for room",
    ("daemon/flusher", "on_clean", "daemon/store"): "the store counts what may be evicted",
    ("daemon/flusher", "on_build_clean", "daemon/store"): "the store forgets a build without data",
    ("daemon/flusher", "on_damaged", "daemon/store"): "the store replaces a damaged entry by its record",
    ("daemon/shared_text", "make", "daemon/server"): "the text of stats, which is made of everything",
    ("libclient/forks", "#include", "libclient/client"): "fork(3) handlers are global and call every client",
}

INCLUDE = re.compile(r'^#include (?:"([a-z]+/[\w/.]+)"|<(stepstash/client\.hp?p?)>)', re.MULTILINE)
MEMBER = re.compile(r"^ +std::function<[^;(]*(?:\([^;]*?\))?[^;()]*> (\w+)(?: *=[^;]*|\{[^;]*)?;", re.MULTILINE)


def pair_of(name):
    return re.sub(r"\.\w+$", "", name)


def sources(root):
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".cpp", ".hpp", ".c", ".h"):
                yield path.relative_to(root).as_posix(), path.read_text()


class Structure:
    def __init__(self, root):
        self.files = dict(sources(root))
        self.arrows = set()  # (from, what, to), between file pairs
        self.callbacks = []  # (file, line, name, pairs that assign it)
        for name, text in self.files.items():
            for ours, public in INCLUDE.findall(text):
                target = pair_of(ours or "libclient/include/" + public)
                if target != pair_of(name):
                    self.arrows.add((pair_of(name), "#include", target))
        for name, text in self.files.items():
            for member in MEMBER.finditer(text):
                self._callback(name, text[: member.start(1)].count("\n") + 1, member[1])

    def _callback(self, file, line, name):
        assigns = re.compile(rf"(?:\.|->){name} = ")
        setters = sorted({pair_of(other) for other, text in self.files.items() if assigns.search(text)} - {pair_of(file)})
        self.callbacks.append((file, line, name, setters))
        self.arrows.update((pair_of(file), name, setter) for setter in setters)

    def folders(self):
        """Folder -> folders that it includes or calls."""
        graph = {folder: set() for folder in FOLDERS}
        for start, _, end in self.arrows:
            a, b = start.split("/")[0], end.split("/")[0]
            if a != b:
                graph[a].add(b)
        return graph

    def pairs(self, folder, without=()):
        """File pair -> pairs of the same folder that it includes or calls, but for the arrows in `without`."""
        graph = {pair_of(name): set() for name in self.files if name.startswith(folder + "/")}
        for arrow in self.arrows - set(without):
            start, _, end = arrow
            if start in graph and end in graph:
                graph[start].add(end)
        return graph


def reachable(graph, start):
    seen, left = set(), list(graph.get(start, ()))
    while left:
        at = left.pop()
        if at not in seen:
            seen.add(at)
            left.extend(graph.get(at, ()))
    return seen


def circles(graph):
    """Each set of nodes that all reach each other, sorted."""
    reach = {node: reachable(graph, node) for node in graph}
    found = {tuple(sorted(b for b in reach[a] if a in reach.get(b, ()))) for a in graph if a in reach[a]}
    return sorted(found)


def problems(structure, known=None):
    known = KNOWN if known is None else known
    complaints = []
    for circle in circles(structure.folders()):
        complaints.append("folders in a circle: " + ", ".join(circle))
    for folder in FOLDERS:
        graph = structure.pairs(folder, known)
        for circle in circles(graph):
            complaints.append("files in a circle: " + ", ".join(circle))
            for start, what, end in sorted(structure.arrows):
                if start in circle and end in circle and (start, what, end) not in known:
                    complaints.append(f"    {start} -> {end} ({what})")
    for arrow in known:
        start, what, end = arrow
        whole = structure.pairs(start.split("/")[0])
        if arrow not in structure.arrows:
            complaints.append(f"{start} -> {end} ({what}) is gone: take its line out of KNOWN in scripts/structure.py")
        elif start not in reachable(whole, end):
            complaints.append(f"{start} -> {end} ({what}) closes no circle: take its line out of KNOWN in scripts/structure.py")
    return complaints


def draw(structure):
    lines = ["folders:"]
    for folder, uses in structure.folders().items():
        lines.append(f"  {folder:<10} -> {', '.join(sorted(uses)) or 'nothing of ours'}")
    lines.append("files of daemon/:")
    for pair, uses in sorted(structure.pairs("daemon", KNOWN).items()):
        names = ", ".join(sorted(use.split("/")[1] for use in uses))
        lines.append(f"  {pair.split('/')[1]:<12} -> {names or 'no other'}")
    lines.append("callbacks (std::function members), and who assigns them:")
    for file, line, name, setters in structure.callbacks:
        lines.append(f"  {file}:{line}: {name:<20} <- {', '.join(setters) or 'nobody'}")
    lines.append("known arrows that close a circle:")
    for (start, what, end), reason in KNOWN.items():
        lines.append(f"  {start} -> {end} ({what}): {reason}")
    return "\n".join(lines)


def main(arguments):
    quiet = "--quiet" in arguments
    places = [argument for argument in arguments if argument != "--quiet"]
    root = pathlib.Path(places[0] if places else pathlib.Path(__file__).resolve().parents[1])
    structure = Structure(root)
    if not quiet:
        print(draw(structure))
    complaints = problems(structure)
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
