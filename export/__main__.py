"""`bolid-export`, and `python -m bolid_export`."""

from bolid_sdk.extras import requires_extra


def main() -> None:
    with requires_extra("export"):
        from bolid_export.cli import main as command

        command()


if __name__ == "__main__":
    main()
