# SPDX-License-Identifier: Apache-2.0
"""bench/report.py: medians are medians, a missed aim is called missed, and nothing that was not measured is called met."""

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
        self.assertEqual(figure.text(report.time), "3 µs (2 µs – 9 µs)")

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
    AIM = "set of 1 KiB, in one of memcached"

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
        self.assertIn("| set of 1 KiB, in one of memcached | 2.00 × | ≤ 1.20 × | **missed** |", page)


if __name__ == "__main__":
    unittest.main()
