"""Command line: `python -m fbp_kernels doctor`."""

import argparse


def main() -> None:
    """Runs the command that was asked for."""
    parser = argparse.ArgumentParser(prog="python -m fbp_kernels")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="what runs where, and why the rest does not")
    parser.parse_args()
    from .doctor import report

    print(report())


if __name__ == "__main__":
    main()
