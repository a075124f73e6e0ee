"""Measures: see dev/bench.sh and docs/performance.md."""

import argparse
import sys
import time

import measures
import report
from lab import Lab


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", required=True, help="directory of the server's programs")
    parser.add_argument("--directory", required=True, help="where to work")
    parser.add_argument("--port", type=int, default=54819)
    parser.add_argument("--quick", action="store_true", help="small and once: to see that everything runs")
    parser.add_argument("--output", help="file for the table")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(measures.ALL)}; all if none is given")
    args = parser.parse_args()
    unknown = set(args.names) - set(measures.ALL)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")

    begin = time.monotonic()
    with Lab(args.bin, args.directory, args.port) as lab:
        rows = measures.run(lab, args.names or list(measures.ALL), measures.QUICK if args.quick else measures.FULL)
        text = report.markdown(rows, lab, "small and once" if args.quick else "in full", time.monotonic() - begin)
    print(text)
    if args.output:
        with open(args.output, "w", encoding="utf8") as f:
            f.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
