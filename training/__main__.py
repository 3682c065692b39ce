"""`bolid-train`, and `python -m bolid_training`."""

from bolid_sdk.extras import requires_extra


def main() -> None:
    with requires_extra("train"):
        from bolid_training.cli import main as command

        command()


if __name__ == "__main__":
    main()
