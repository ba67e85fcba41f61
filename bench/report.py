#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints what stepstash-bench measured, and which aims were met; with --write makes docs/performance.md of it.

    bench/report.py [--write] [--others=PERCENT] FIGURES.json

PERCENT is what other processes used of the processors meanwhile: bench/run knows it. FIGURES.json is the output of
Google Benchmark. A benchmark is called ROW/PEER/SIZE; its repetitions become a median, a
least and a greatest.

What another program has measured becomes a section of the report, too: a file *.json in bench/results, with

    {"title": "...", "text": "...", "header": ["...", ...], "rows": [["...", ...], ...]}

in which text is Markdown.
"""

import json
import math
import pathlib
import re
import statistics
import sys
import textwrap

ROOT = pathlib.Path(__file__).resolve().parents[1]
KIB, MIB = 1024, 1024 * 1024


# ---- what was measured -----------------------------------------------------------------------------------------------


class Figure:
    """The repetitions of one figure."""

    def __init__(self, values):
        self.median, self.least, self.greatest = statistics.median(values), min(values), max(values)

    def text(self, unit):
        """The median, and in brackets the least and the greatest, without a unit where it is the same."""
        median, least, greatest = (unit(value) for value in (self.median, self.least, self.greatest))
        if least == greatest:
            return median
        name = median.partition(" ")[2]
        if all(text.partition(" ")[2] == name for text in (least, greatest)):
            least, greatest = least.partition(" ")[0], greatest.partition(" ")[0]
        return f"{median} ({least} – {greatest})"


class Measured:
    """All figures, by "ROW/PEER/SIZE" and what of it: "time" (ns), "items", "bytes" (per second), or a counter."""

    def __init__(self, output):
        self.context = output["context"]
        self.skipped = {}
        runs = {}
        for run in output["benchmarks"]:
            name = "/".join(run["run_name"].split("/")[:3])
            if run.get("error_occurred"):
                self.skipped[name] = run["error_message"]
            elif run["run_type"] == "iteration":
                runs.setdefault(name, []).append(run)
        self.figures = {}
        for name, repeated in runs.items():
            scale = {"ns": 1, "us": 1e3, "ms": 1e6, "s": 1e9}[repeated[0]["time_unit"]]
            self._add(name, "time", [run["real_time"] * scale for run in repeated])
            for key, value in repeated[0].items():
                if key in ("items_per_second", "bytes_per_second"):
                    self._add(name, key.split("_")[0], [run[key] for run in repeated])
                elif isinstance(value, float) and key not in ("real_time", "cpu_time"):
                    self._add(name, key, [run[key] for run in repeated])

    def _add(self, name, what, values):
        self.figures[name, what] = Figure(values)

    def get(self, name, what="time"):
        return self.figures.get((name, what))

    def median(self, name, what="time"):
        """KeyError where it was not measured: the aim says so."""
        return self.figures[name, what].median


# ---- the aims --------------------------------------------------------------------------------------------------------


class Aim:
    def __init__(self, what, value, operator, bound, unit):
        self.what, self.value, self.operator, self.bound, self.unit = what, value, operator, bound, unit

    def row(self, measured):
        wanted = f"{self.operator} {self.unit(self.bound)}"
        try:
            value = self.value(measured)
        except KeyError:
            return [self.what, "", wanted, "not measured"]
        met = value <= self.bound if self.operator == "≤" else value >= self.bound
        return [self.what, self.unit(value), wanted, "met" if met else "**missed**"]


def digits(value):
    """Three digits that count; 12,300 and not 1.23e+04."""
    if value == 0:
        return "0"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{round(value, 2 - math.floor(math.log10(abs(value)))):,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def scaled(value, *units):
    for size, name in units[:-1]:
        if value >= size:
            return f"{digits(value / size)} {name}"
    size, name = units[-1]
    return f"{digits(value / size)} {name}"


def time(ns):
    return scaled(ns, (1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1, "ns"))


def rate(bytes_per_second):
    return scaled(bytes_per_second, (1e9, "GB/s"), (1e6, "MB/s"))


def per_second(items):
    return scaled(items, (1e9, "G/s"), (1e6, "M/s"), (1e3, "k/s"))


def times(value):
    return f"{value:.2f}"


def count(value):
    return f"{value:,.0f}"


def bytes_of(value):
    return f"{value:,.0f} bytes"


def size_text(size):
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"


def ratio(row, size, over, under, what="time"):
    """The figure of one peer divided by that of another."""
    return lambda m: m.median(f"{row}/{over}/{size}", what) / m.median(f"{row}/{under}/{size}", what)


def of_all(function, values):
    return lambda m: function([value(m) for value in values])


def own(name, what="time"):
    return lambda m: m.median(name, what)


def of_a_whole_run(value):
    """--quick has fewer entries, and too few sets for the worst of many."""

    def of(measured):
        if measured.context.get("quick") == "yes":
            raise KeyError("quick")
        return value(measured)

    return of


GETS = (KIB, MIB, 64 * MIB)
SETS = (64 * KIB, MIB, 64 * MIB, 256 * MIB)

AIMS = [
    Aim("warm get of a hot key, the slowest of three sizes",
        of_all(max, [own(f"warm_get/stepstash/{size}") for size in GETS]), "≤", 9, time),
    Aim("the same: LMDB's time / stepstash's, the least of three sizes",
        of_all(min, [ratio("warm_get", size, "lmdb", "stepstash") for size in GETS]), "≥", 8, times),
    *(Aim(f"gets/s, random of 10,000, {readers} reader{'s' * (readers > 1)}: stepstash / LMDB",
          ratio("random_get", readers, "stepstash", "lmdb", "items"), "≥", 8, times) for readers in (1, 2, 8)),
    Aim("get, random of 10^6", of_a_whole_run(own("random_of_many/stepstash/many")), "≤", 100, time),
    Aim("scan of 64 MiB: bandwidth / that of own memory", ratio("scan", 64 * MIB, "stepstash", "memory", "bytes"), "≥",
        0.95, times),
    *(Aim(f"new process, {size_text(size)}: time / that of {title}", ratio("new_process", size, "stepstash", peer), "≤",
          bound, times)
      for size in (KIB, MIB) for peer, title, bound in (("file", "a mapped file", 1.25), ("lmdb", "LMDB", 1))),
    Aim("new process, 64 MiB: time / that of the best of file and LMDB",
        lambda m: m.median(f"new_process/stepstash/{64 * MIB}")
        / min(m.median(f"new_process/{peer}/{64 * MIB}") for peer in ("file", "lmdb")), "≤", 1.05, times),
    Aim("set of 1 MiB: bandwidth / that of LMDB", ratio("set", MIB, "stepstash", "lmdb", "bytes"), "≥", 1, times),
    *(Aim(f"set of {size_text(size)}: bandwidth / that of memcpy", ratio("set", size, "stepstash", "memcpy", "bytes"),
          "≥", 0.75, times) for size in (64 * MIB, 256 * MIB)),
    *(Aim(f"set of {size_text(size)}: the worst of many / their median",
          of_a_whole_run(lambda m, size=size: m.figures[f"set/stepstash/{size}", "worst_ns"].greatest
                         / m.median(f"set/stepstash/{size}", "p50_ns")), "≤", 5, times)
      for size in (64 * MIB, 256 * MIB)),
    Aim("set of 1 KiB: time / that of memcached", ratio("set", KIB, "stepstash", "memcached"), "≤", 1.2, times),
    *(Aim(f"durable set of {size_text(size)}: time / that of SQLite", ratio("durable_set", size, "stepstash", "sqlite"),
          "≤", bound, times) for size, bound in ((KIB, 1.1), (MIB, 1.1), (64 * MIB, 0.6))),
    Aim("get under a writer at full speed: 99 % take at most", own(f"tail_under_writer/stepstash/{MIB}", "p99_ns"), "≤",
        60, time),
    Aim("writer next to a spinning reader: bandwidth / that of LMDB",
        ratio("tail_under_writer", MIB, "stepstash", "lmdb", "writer_bytes_per_second"), "≥", 1, times),
    Aim("start with 10^6 entries after SIGKILL", of_a_whole_run(own("start_after_kill/stepstash/many")), "≤", 0.7e9,
        time),
    Aim("start with 10^6 entries without the segment", of_a_whole_run(own("start_without_segment/stepstash/many")), "≤",
        0.7e9, time),
    Aim("daemon's memory for each entry", own("memory/stepstash/many", "daemon_bytes"), "≤", 100, bytes_of),
    Aim("segment for each entry, without its name, source and value", own("memory/stepstash/many", "segment_bytes"),
        "≤", 128, bytes_of),
    Aim("builds that fit a segment of 1 GiB / those tried", lambda m: m.median("builds/stepstash/many", "builds")
        / m.median("builds/stepstash/many", "tried"), "≥", 1, times),
]


# ---- tables ----------------------------------------------------------------------------------------------------------

PEERS = {
    "stepstash": "stepstash", "command": "command `stepstash get`", "lmdb": "LMDB", "file": "file in /dev/shm",
    "redis": "Redis", "memcached": "memcached", "sqlite": "SQLite as Buildbot uses it", "pointer": "pointer (bound)",
    "memcpy": "memcpy (bound)", "true": "`true` (bound)", "memory": "own memory (bound)", "clock": "the clock (bound)",
}


def markdown(header, rows):
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def plain(header, rows):
    rows = [[str(cell).replace("**", "").replace("`", "") for cell in row] for row in (header, *rows)]
    rows = rows if any(rows[0]) else rows[1:]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def in_stepstash(measured, row, peer, size, what):
    """How many times as long, or as fast, as stepstash; nothing where that says nothing."""
    ours = measured.get(f"{row}/stepstash/{size}", what)
    figure = measured.get(f"{row}/{peer}/{size}", what)
    if peer == "stepstash" or not ours or not figure:
        return ""
    return f", {digits(figure.median / ours.median)} ×"


def table(measured, row, what, unit, columns, titles):
    """Peers down, sizes across."""
    names = [name.split("/") for name, _ in measured.figures] + [name.split("/") for name in measured.skipped]
    peers = [peer for peer in PEERS if any(name[:2] == [row, peer] for name in names)]
    rows = []
    for peer in peers:
        cells = [PEERS[peer]]
        for size in columns:
            figure = measured.get(f"{row}/{peer}/{size}", what)
            if figure:
                cells.append(figure.text(unit) + in_stepstash(measured, row, peer, size, what))
            else:
                cells.append(measured.skipped.get(f"{row}/{peer}/{size}", ""))
        rows.append(cells)
    return ["", *titles], rows


def new_process_table(measured):
    header, rows = table(measured, "new_process", "time", time, GETS, [size_text(size) for size in GETS])
    for cells, peer in zip(rows, [peer for peer in PEERS if measured.get(f"new_process/{peer}/{KIB}")]):
        for i, size in enumerate(GETS, start=1):
            figure, floor = measured.get(f"new_process/{peer}/{size}"), measured.get(f"new_process/true/{size}")
            faults = measured.get(f"new_process/{peer}/{size}", "page_faults")
            if figure and floor:
                cells[i] = f"{figure.text(time)}, {figure.median / floor.median:.2f} × `true`, "
                cells[i] += f"{faults.median:,.0f} page faults"
    return header, rows


def worst_table(measured):
    rows = []
    for peer in PEERS:
        cells = [PEERS[peer]]
        for size in (64 * MIB, 256 * MIB):
            median = measured.get(f"set/{peer}/{size}", "p50_ns")
            worst = measured.get(f"set/{peer}/{size}", "worst_ns")
            cells.append(f"{time(median.median)}, {time(worst.greatest)}" if median and worst else "")
        if any(cells[1:]):
            rows.append(cells)
    return ["", "64 MiB: median, worst", "256 MiB: median, worst"], rows


QUANTILES = {"p50_ns": "half", "p99_ns": "99 %", "p99.9_ns": "99.9 %", "p99.99_ns": "99.99 %", "worst_ns": "worst"}
TAILS = {
    "tail_idle/clock": "the clock (bound)", "tail_idle/stepstash": "stepstash, idle",
    "tail_under_writer/stepstash": "stepstash, under a writer", "tail_idle/lmdb": "LMDB, idle",
    "tail_under_writer/lmdb": "LMDB, under a writer",
}


def tail_table(measured):
    rows = []
    for name, title in TAILS.items():
        cells = [measured.get(f"{name}/{MIB}", quantile) for quantile in QUANTILES]
        writer = measured.get(f"{name}/{MIB}", "writer_bytes_per_second")
        if all(cells):
            rows.append([title, *(cell.text(time) for cell in cells), writer.text(rate) if writer else ""])
    return ["gets take at most", *QUANTILES.values(), "the writer sets"], rows


def growth_table(measured):
    lines = [
        ("the daemon's memory for each entry", "memory/stepstash/many", "daemon_bytes", bytes_of),
        ("the segment for each entry, without its name, source and value", "memory/stepstash/many", "segment_bytes",
         bytes_of),
        ("sets, by four clients at once", "memory/stepstash/many", "items", per_second),
        ("get of a random entry, stepstash", "random_of_many/stepstash/many", "time", time),
        ("get of a random entry, LMDB", "random_of_many/lmdb/many", "time", time),
        ("start after SIGKILL", "start_after_kill/stepstash/many", "time", time),
        ("start without the segment, from the database", "start_without_segment/stepstash/many", "time", time),
        ("builds that fit a segment of 1 GiB", "builds/stepstash/many", "builds", count),
        ("builds that were tried", "builds/stepstash/many", "tried", count),
    ]
    figures = [(what, measured.get(name, key), unit) for what, name, key, unit in lines]
    return ["", ""], [[what, figure.text(unit)] for what, figure, unit in figures if figure]


def python_table(measured):
    python, c = measured.get("python_get/stepstash/1024"), measured.get(f"warm_get/stepstash/{KIB}")
    if not python or not c:
        return ["", ""], []
    return ["", ""], [["get and release, from Python", python.text(time)],
                      ["the same without the C calls", time(python.median - c.median)]]


# ---- the report ------------------------------------------------------------------------------------------------------


def environment(measured):
    context = measured.context
    known = {"date", "host_name", "executable", "num_cpus", "mhz_per_cpu", "cpu_scaling_enabled", "caches", "load_avg",
             "library_build_type", "quick", "processor", "others", "commit"}
    rows = [["date", context["date"]], ["commit", context.get("commit", "unknown")],
            ["processors", f"{context['num_cpus']} × {context.get('processor', '')}"],
            ["used by other processes", f"{context.get('others', '?')} % of the processors"]]
    return ["", ""], rows + [[key, value] for key, value in context.items() if key not in known]

NOT_MEASURED = """\
A tmpfs with huge pages, on which reads by a new process and sets into fresh memory are several times as fast, for
stepstash and for peers; values that were evicted and come back from the database; Redis with a log that is synced at
each set; clients on other machines. What another program has measured becomes a section of this page: a file in
bench/results, as `bench/report.py --help` describes it."""


def busy(measured):
    """A warning, if the figures deserve one."""
    others = measured.context.get("others", 0)
    if others <= 5:
        return ""
    return (f"Other processes used {others} % of the processors in the meantime. So times are too long, the worst ones "
            "above all, and small ratios say little. What waits for a disk or for a server then also waits for a "
            "processor: those ratios say nothing.")


def sections(measured):
    """Title, what it means, header and rows; in the order of the page."""
    sizes = [size_text(size) for size in GETS]
    yield ("Warm get", "A process that is already connected gets the same value again and again, and gives it back. "
           "stepstash, LMDB and files show the bytes in place and nobody reads them, so the size does not matter; the "
           "servers and SQLite copy them. LMDB renews a read transaction for each get. A file is opened, mapped and "
           "unmapped.", *table(measured, "warm_get", "time", time, GETS, sizes))
    yield ("Many keys, many readers", "10,000 values of 4 KiB in random order, by 1, 2 and 8 threads at once; gets per "
           "second of all together. More threads than processors take turns.",
           *table(measured, "random_get", "items", per_second, (1, 2, 8), ["1 reader", "2 readers", "8 readers"]))
    yield ("Scan", "All bytes of 64 MiB are read in place, by one thread that has read them before.",
           *table(measured, "scan", "bytes", rate, [64 * MIB], ["64 MiB"]))
    yield ("A new process", "What a step is: a process starts, gets one value, reads a byte of each page, and ends. "
           "`true` is a process that does nothing. The program with `libstepstash.so` and its "
           "peers are in bench/new_process; the command writes to /dev/null, which reads nothing.",
           *new_process_table(measured))
    yield ("Set", "The same name again and again, each time with other bytes; nobody waits for a disk. LMDB lies in "
           "/dev/shm and has NOSYNC; a file is written under another name and renamed. stepstash also writes to its "
           "database in the meantime, which takes a part of the processors and which no peer does.",
           *table(measured, "set", "bytes", rate, SETS, [size_text(size) for size in SETS]))
    yield ("The worst set", "Of the same runs: half of the sets took no longer than the median, and one the worst.",
           *worst_table(measured))
    yield ("Set of 1 KiB", "A round trip to the daemon, or to a server; LMDB and files have nobody to ask.",
           *table(measured, "set", "time", time, [KIB], ["1 KiB"]))
    yield ("Durable set", "The call returns when the value survives a loss of power: stepstash with `durable`, SQLite "
           "with its write-ahead log and `synchronous = FULL`, LMDB with its default. All three on the same disk.",
           *table(measured, "durable_set", "time", time, GETS, sizes))
    yield ("The tail", "A get of a value of 1 MiB, each measured by itself, so each includes reading the clock; idle, "
           "and while a thread replaces that very value as fast as it can.", *tail_table(measured))
    many = "100,000" if measured.context.get("quick") == "yes" else "A million"
    yield ("Growth", f"{many} entries of 100 bytes, a thousand to a build, in a daemon of their own; then a daemon with "
           "a segment of 1 GiB, and one value of a byte in each of many builds.", *growth_table(measured))
    yield ("Python", "A get of 1 KiB in a `with` block.", *python_table(measured))
    for path in sorted((ROOT / "bench" / "results").glob("*.json")):
        extra = json.loads(path.read_text())
        yield extra["title"], extra["text"], extra["header"], extra["rows"]


PLOTS = {
    "Warm get": ("get.svg", "latency against size"),
    "Many keys, many readers": ("readers.svg", "gets per second against readers"),
    "Set": ("set.svg", "bandwidth against size"),
    "The tail": ("tail.svg", "latency against the part of gets that take no longer"),
}

INTRODUCTION = """\
Written by `bench/run --write`: every figure comes from one run, on one machine, next to what a step would use instead.
Times differ from machine to machine; the ratios between peers hold better. Run it on yours:

```console
$ bench/run            # below eight minutes; installs what is missing
$ bench/run --quick    # below one
```

Each figure is the median of {repetitions} repetitions, with the least and the greatest in brackets. Where it says
*3 ×*, a peer has three times the figure of stepstash, whether that is a time (stepstash is faster) or a rate (the
peer is).
All peers and stepstash run one after another in one program, [Google Benchmark](https://github.com/google/benchmark);
the servers are their own processes behind unix sockets. stepstash is used through its C ABI, with the default of every
setting except the segment's size, 2 GiB, and its database on a disk."""


def page(measured):
    introduction = INTRODUCTION.format(repetitions=measured.context["repetitions"])
    parts = ["# How fast is it, compared with what?", paragraphs(introduction)]
    aims = [aim.row(measured) for aim in AIMS]
    missed = sum("missed" in row[3] for row in aims)
    met = sum(row[3] == "met" for row in aims)
    parts += ["## Aims", paragraphs("What stepstash is to reach, as ratios within one run where that can be: "
                                    f"{met} met, {missed} missed. A missed aim is work to do, and stays here until "
                                    "it is done."),
              markdown(["aim", "measured", "wanted", ""], aims)]
    if busy(measured):
        parts.insert(2, paragraphs(f"**{busy(measured)}**"))
    parts += ["## Measured on", markdown(*environment(measured))]
    for title, text, header, rows in sections(measured):
        if not rows:
            continue
        parts += [f"## {title}", paragraphs(text), markdown(header, rows)]
        if title in PLOTS:
            parts.append(f"![{PLOTS[title][1]}](performance/{PLOTS[title][0]})")
    parts += ["## Not measured", paragraphs(NOT_MEASURED)]
    return "\n\n".join(parts) + "\n"


def paragraphs(text):
    """Wrapped at 100 columns, but for what is fenced."""
    return "\n\n".join(part if part.startswith("```") else
                       textwrap.fill(part, 100, break_long_words=False, break_on_hyphens=False)
                       for part in text.split("\n\n"))


def report(measured):
    yield "environment\n" + plain(*environment(measured))
    for title, _, header, rows in sections(measured):
        if rows:
            yield f"{title}\n{plain(header, rows)}"
    for reason in sorted(set(measured.skipped.values())):
        yield f"skipped: {reason}"
    aims = [aim.row(measured) for aim in AIMS]
    yield "aims\n" + plain(["aim", "measured", "wanted", ""], aims)
    if busy(measured):
        yield busy(measured)
    yield f"{sum(row[3] == 'met' for row in aims)} met, {sum('missed' in row[3] for row in aims)} missed"


# ---- plots -----------------------------------------------------------------------------------------------------------

COLOURS = {"stepstash": "#c0392b", "lmdb": "#2c7fb8", "file": "#7f8c8d", "redis": "#e08214", "memcached": "#1b9e77",
           "sqlite": "#8e44ad", "pointer": "#000000", "memcpy": "#000000"}


def draw(measured, directory):
    import matplotlib

    matplotlib.use("svg")
    # Text stays text, and the same figures give the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "stepstash", "font.size": 10,
                                "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True,
                                "axes.spines.top": False, "axes.spines.right": False})
    import matplotlib.pyplot as plt

    def lines(axes, row, what, columns, scale):
        for peer in PEERS:
            figures = [measured.get(f"{row}/{peer}/{size}", what) for size in columns]
            if not any(figures) or peer not in COLOURS:
                continue
            points = [(size, figure) for size, figure in zip(columns, figures) if figure]
            medians = [figure.median * scale for _, figure in points]
            spread = [[(figure.median - figure.least) * scale for _, figure in points],
                      [(figure.greatest - figure.median) * scale for _, figure in points]]
            floor = peer in ("pointer", "memcpy")
            axes.errorbar([size for size, _ in points], medians, spread, label=PEERS[peer], color=COLOURS[peer],
                          marker="" if floor else "o", markersize=4, capsize=2, linestyle=":" if floor else "-",
                          linewidth=2.2 if peer == "stepstash" else 1.2)

    def save(figure, axes, name):
        axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(directory / name, bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)

    def sized(axes, sizes):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [size_text(size) for size in sizes])
        axes.set_xlabel("bytes of the value")

    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    lines(axes, "warm_get", "time", GETS, 1e-9)
    sized(axes, GETS)
    axes.set_yscale("log")
    axes.set_yticks([1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1],
                    ["1 ns", "10 ns", "100 ns", "1 µs", "10 µs", "100 µs", "1 ms", "10 ms", "100 ms"])
    axes.set_ylabel("time of a warm get")
    save(figure, axes, "get.svg")

    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    lines(axes, "set", "bytes", SETS, 1e-9)
    sized(axes, SETS)
    axes.set_yscale("log")
    axes.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    axes.set_ylabel("GB/s")
    save(figure, axes, "set.svg")

    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    lines(axes, "random_get", "items", (1, 2, 8), 1e-6)
    axes.set_xscale("log", base=2)
    axes.set_xticks((1, 2, 8), ("1", "2", "8"))
    axes.set_yscale("log")
    axes.set_yticks([0.01, 0.1, 1, 10, 100, 1000], ["0.01", "0.1", "1", "10", "100", "1000"])
    axes.set_xlabel("readers at once")
    axes.set_ylabel("million gets per second")
    save(figure, axes, "readers.svg")

    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    for name, title in TAILS.items():
        figures = [measured.get(f"{name}/{MIB}", quantile) for quantile in QUANTILES]
        if not all(figures):
            continue
        peer = name.split("/")[1]
        axes.plot(range(len(figures)), [figure.median for figure in figures], label=title, marker="o", markersize=4,
                  color=COLOURS.get(peer, "black"), linestyle="-" if "writer" in name else ":")
    axes.set_yscale("log")
    axes.set_xticks(range(len(QUANTILES)), QUANTILES.values())
    axes.set_yticks([10, 100, 1e3, 1e4, 1e5, 1e6, 1e7], ["10 ns", "100 ns", "1 µs", "10 µs", "100 µs", "1 ms", "10 ms"])
    axes.set_xlabel("part of the gets")
    axes.set_ylabel("take at most")
    save(figure, axes, "tail.svg")


def main():
    arguments = sys.argv[1:]
    write = "--write" in arguments
    files = [argument for argument in arguments if not argument.startswith("-")]
    others = [argument for argument in arguments if re.fullmatch(r"--others=\d+", argument)]
    if len(files) != 1 or set(arguments) - {"--write", *others, *files}:
        print(__doc__.strip())
        sys.exit(0 if {"--help", "-h"} & set(arguments) else 64)
    measured = Measured(json.loads(pathlib.Path(files[0]).read_text()))
    if others:
        measured.context["others"] = int(others[-1].partition("=")[2])
    print("\n\n".join(report(measured)))
    if write:
        (ROOT / "docs" / "performance").mkdir(exist_ok=True)
        draw(measured, ROOT / "docs" / "performance")
        (ROOT / "docs" / "performance.md").write_text(page(measured))
        print("\nwritten: docs/performance.md, docs/performance/*.svg")


if __name__ == "__main__":
    main()
