# SPDX-License-Identifier: Apache-2.0
"""bench/report.py: medians are medians, a missed aim is called missed, and what was not measured is not met."""

import pathlib
import sys
import unittest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(SOURCE / "bench"))
import report  # noqa: E402


def run(name, time, unit="ns", **more):
    return {"name": name, "run_name": name, "run_type": "iteration", "real_time": time, "cpu_time": 1.0,
            "time_unit": unit, **more}


def measured(*runs, **context):
    context = {"date": "today", "num_cpus": 2, "repetitions": "3", "quick": "no", **context}
    return report.Measured({"context": context, "benchmarks": list(runs)})


def verdicts(figures):
    return {row[0]: row[3] for row in (aim.row(figures) for aim in report.AIMS)}


class FiguresTest(unittest.TestCase):
    def test_repetitions_become_a_median_with_least_and_greatest(self):
        figures = measured(*(run("set/lmdb/1024/min_time:0.8/real_time", time, "us") for time in (9.0, 2.0, 3.0)))
        figure = figures.get("set/lmdb/1024")
        self.assertEqual((figure.least, figure.median, figure.greatest), (2000, 3000, 9000))
        self.assertEqual(figure.text(report.time), "3 µs (2 – 9)")

    def test_figures_have_three_digits_that_count(self):
        texts = [report.time(value) for value in (0.5, 1.8, 17.94, 999.9, 1000, 12345.0, 2.5e9)]
        self.assertEqual(texts, ["0.5 ns", "1.8 ns", "17.9 ns", "1,000 ns", "1 µs", "12.3 µs", "2.5 s"])
        texts = [report.digits(value) for value in (0, 0.00123, 13214, 7e6)]
        self.assertEqual(texts, ["0", "0.00123", "13,200", "7,000,000"])

    def test_aggregates_of_google_benchmark_are_no_repetitions(self):
        aggregate = {**run("a/b/1", 100.0), "run_type": "aggregate"}
        self.assertEqual(measured(run("a/b/1", 1.0), aggregate).get("a/b/1").greatest, 1.0)

    def test_a_peer_that_is_not_there_is_named(self):
        gone = run("set/redis/1024", 0.0, error_occurred=True, error_message="Redis is not installed")
        figures = measured(gone, run("set/stepstash/1024", 1.0))
        self.assertIn("skipped: Redis is not installed", list(report.report(figures)))
        _, rows = report.table(figures, "set", "time", report.time, [1024], ["1 KiB"])
        self.assertIn(["Redis", "Redis is not installed"], rows)


class AimsTest(unittest.TestCase):
    AIM = "set of 1 KiB: time / that of memcached"

    def test_an_aim_is_met_up_to_its_bound(self):
        for ours, verdict in ((12.0, "met"), (12.1, "**missed**")):
            figures = measured(run("set/stepstash/1024", ours), run("set/memcached/1024", 10.0))
            self.assertEqual(verdicts(figures)[self.AIM], verdict)

    def test_what_was_not_measured_is_not_met(self):
        self.assertEqual(set(verdicts(measured()).values()), {"not measured"})
        self.assertEqual(verdicts(measured(run("set/stepstash/1024", 1.0)))[self.AIM], "not measured")

    def test_the_slowest_of_several_sizes_decides(self):
        gets = {1024: 5.0, 1024**2: 5.0, 64 * 1024**2: 20.0}
        figures = measured(*(run(f"warm_get/stepstash/{size}", time) for size, time in gets.items()))
        self.assertEqual(verdicts(figures)["warm get of a hot key, the slowest of three sizes"], "**missed**")

    def test_a_quick_run_says_nothing_about_a_million_entries(self):
        start = run("start_after_kill/stepstash/many", 0.1, "s")
        aim = "start with 10^6 entries after SIGKILL"
        self.assertEqual(verdicts(measured(start))[aim], "met")
        self.assertEqual(verdicts(measured(start, quick="yes"))[aim], "not measured")


class PageTest(unittest.TestCase):
    def test_the_page_has_the_missed_aims(self):
        page = report.page(measured(run("set/stepstash/1024", 20.0), run("set/memcached/1024", 10.0)))
        self.assertIn("0 met, 1 missed", " ".join(page.split()))
        self.assertIn(f"| {AimsTest.AIM} | 2.00 | ≤ 1.20 | **missed** |", page)


if __name__ == "__main__":
    unittest.main()
