"""Run models of the zoo, and compare them with NNCF.

    python -m tests.zoo                          # which there are
    python -m tests.zoo magika unisim            # run these; with `pip install -e '.[peers]'` against NNCF, too
    python -m tests.zoo --all --results FOLDER   # all of them: about an hour on two cores
    python -m tests.zoo --table FOLDER           # the table of what was run

Downloads stay in ~/.cache/pot-workflow-zoo, or where the environment's POT_WORKFLOW_ZOO says.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.zoo.entries import names, read
from tests.zoo.pipeline import PRESETS, CommandError, prepared, run
from tests.zoo.table import PEERS, table


def main() -> int:
    """Run what the command line says; 1 when a model failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to run")
    parser.add_argument("--all", action="store_true", help="run all")
    parser.add_argument("--variants", nargs="+", help="only these variants, e.g. static")
    parser.add_argument("--presets", nargs="+", default=PRESETS, choices=PRESETS)
    parser.add_argument("--results", type=Path, help="folder for NAME.json per model")
    parser.add_argument("--keep", type=Path, help="folder in which the projects stay")
    parser.add_argument("--table", type=Path, metavar="FOLDER", help="print the table of these results")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.table), end="")
        return 0
    chosen = names() if arguments.all else arguments.names
    if unknown := sorted(set(chosen) - set(names())):
        parser.error(f"no such model: {', '.join(unknown)}; there are {', '.join(names())}")
    if not chosen:
        print("\n".join(f"{name:20} {read(name).about}" for name in names()))
        return 0
    failed = 0
    for name in chosen:
        results = one(name, arguments)
        failed += any("failed" in result for result in results.values())
        if arguments.results:
            arguments.results.mkdir(parents=True, exist_ok=True)
            file = arguments.results / f"{name}.json"
            if file.exists():  # variants that were run before stay
                results = json.loads(file.read_text("utf-8")) | results
            file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return 1 if failed else 0


def one(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one model's variants, and print each."""
    entry = read(name)
    peers = PEERS if importlib.util.find_spec("nncf") else ()
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        try:
            project = prepared(entry, (arguments.keep or Path(temporary)) / name)
        except (CommandError, FileExistsError, FileNotFoundError) as error:
            print(f"== {name}\n   failed: {error}", flush=True)
            return {variant: {"presets": {}, "peers": {}, "failed": str(error)} for variant in arguments.variants or entry.variants}
        for variant in entry.variants:
            if arguments.variants and variant not in arguments.variants:
                continue
            started = time.perf_counter()
            result = run(entry, project, variant, arguments.presets, [peer for peer in peers if peer in arguments.presets])
            results[variant] = {key: value for key, value in result.items() if key != "output"}
            print(f"== {name}, {variant}: {time.perf_counter() - started:.0f} s", *_lines(result), sep="\n   ", flush=True)
    return results


def _lines(result: dict[str, Any]) -> list[str]:
    lines = [f"failed: {result['failed']}"] if "failed" in result else []
    if "fp32" in result:
        lines.append(f"{result['metric']}: FP32 {result['fp32']:.4f}, default {result['default']:.4f}")
    for preset, outcome in result["presets"].items():
        speed = (outcome["speed_up"] or {}).get("fp32", {}).get("median", 0)
        drop, low, high = outcome["drop"]
        counts = f"float {outcome['float']}, {outcome['quantizers']}"
        lines.append(f"{preset}: {outcome['value']:.4f}, drop {drop:.4f} [{low}, {high}], {speed:.2f}x, {counts}")
    lines += [f"NNCF {preset}: {outcome}" for preset, outcome in result["peers"].items()]
    return lines


if __name__ == "__main__":
    sys.exit(main())
