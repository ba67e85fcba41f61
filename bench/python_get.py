# SPDX-License-Identifier: Apache-2.0
"""Prints the seconds that one get takes, the median of nine runs: python_get.py BUILD NAME"""

import statistics
import sys
import timeit

import stepstash


def main():
    build, name = int(sys.argv[1]), sys.argv[2]
    with stepstash.Client() as client:

        def get():
            with client.get(build, name):
                pass

        times = timeit.repeat(get, number=10_000, repeat=9)
    print(f"{statistics.median(times) / 10_000:.12f}")


main()
