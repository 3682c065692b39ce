"""Several photographs of one person make one identity; it is encoded once and used as often as you like.

python examples/several_references.py front.jpg side.jpg back.jpg
"""

import sys
from pathlib import Path

from bolid_sdk import Generator

REFERENCES = sys.argv[1:] or sorted(Path(__file__).parent.glob("ref*.png"))
PROMPTS = ["walking in a park", "lying on a beach", "jumping in a garden"]

generator = Generator()
person = generator.identify(REFERENCES)
images = generator.batch([(person, prompt) for prompt in PROMPTS], pose=None, seed=7)
for index, image in enumerate(images):
    image.save(f"several_references_{index}.png")
