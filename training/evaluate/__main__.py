"""`bolid-eval`, and `python -m bolid_training.evaluate`."""

from bolid_sdk.extras import requires_extra


def main() -> None:
    with requires_extra("train"):
        from bolid_training.evaluate.cli import main as command

        command()


if __name__ == "__main__":
    main()
