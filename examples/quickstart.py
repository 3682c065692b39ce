"""One person, one prompt, one picture."""

from pathlib import Path

from bolid_sdk import Generator

REFERENCE = Path(__file__).parent / "ref.png"

generator = Generator()  # the embedded bundle, on the best backend that works here
generator(REFERENCE, "standing on a beach at sunset", seed=7).save("quickstart.png")
