"""``python -m grpo_bench``."""

from grpo_bench.process import start_again


def main() -> None:
    """The command line, in a process that was told at its start what it has to be."""
    start_again()
    from grpo_bench.cli import main as run  # what it imports takes a while: not twice

    run()


if __name__ == "__main__":
    main()
