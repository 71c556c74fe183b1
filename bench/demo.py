"""Keeps the figures of a demo with the committed results: `python -m bench.demo runs/results/demo.json`."""

import argparse
import json
from datetime import date
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Copies demo.json, named after device and date; paths of pictures stay behind."""
    parser = argparse.ArgumentParser(prog="python -m bench.demo", description=__doc__)
    parser.add_argument("result", type=Path, help="demo.json of a run with --compare")
    result = json.loads(parser.parse_args().result.read_text("utf-8"))
    result.pop("pictures")
    out = RESULTS / f"demo-{result['machine']['device']}-{date.today().isoformat()}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
