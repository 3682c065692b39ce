"""One person in six scenes: the picture at the top of README.md. The pose is the reference's own."""

from pathlib import Path

from PIL import Image

from bolid_sdk import Generator

REFERENCE = Path(__file__).parent / "ref.png"
PROMPTS = [
    "standing on a beach at sunset",
    "standing in a snowy field",
    "standing in a library",
    "standing in a forest at night",
    "standing in a kitchen, cartoon",
    "standing in a park, watercolour",
]
SIDE = 256

generator = Generator()
person = generator.identify(REFERENCE)
results = generator.batch([(person, prompt) for prompt in PROMPTS], seed=7)

pictures = [Image.open(REFERENCE), *(result.image for result in results)]
strip = Image.new("RGB", (SIDE * len(pictures), SIDE))
for index, picture in enumerate(pictures):
    strip.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (index * SIDE, 0))
strip.save("teaser.png")
