"""`python -m benchmarks.aot`: writes benchmarks/results/aot.md, in some minutes; see the package."""

import argparse
import json
from pathlib import Path

from benchmarks.aot.analysis import rows
from benchmarks.aot.cases import collected
from benchmarks.aot.report import page
from benchmarks.aot.targets import TARGETS
from benchmarks.case import KERNELS
from benchmarks.pairs import provenance


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Report what the Triton kernels compile to on GPUs that are not there."
    )
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"of {', '.join(KERNELS)}; all by default")
    parser.add_argument("--targets", nargs="+", choices=[t.name for t in TARGETS], default=[t.name for t in TARGETS])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "aot.md")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    if unknown := set(arguments.kernels) - set(KERNELS):
        parser.error(f"no kernel {', '.join(sorted(unknown))}; there are {', '.join(KERNELS)}")
    cases = collected(arguments.kernels or KERNELS)
    found = []
    for row in rows(cases, [t for t in TARGETS if t.name in arguments.targets]):
        found.append(row)
        print(
            f"{row.case.kernel} {row.case.label}, {row.target.gpu}: {row.bound.by}, {row.instructions:.1f} instructions"
        )
    where = provenance()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(page(found, where), encoding="utf-8")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"provenance": where, "rows": [row.flat() for row in found]}, indent=1) + "\n"
        )
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
