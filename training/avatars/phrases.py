"""The words of captions: every phrase a caption can contain stands in one of these tables."""

from __future__ import annotations

PLACES = {
    "living room": ("in a living room",),
    "bedroom": ("in a bedroom",),
    "kitchen": ("in a kitchen",),
    "office": ("in an office",),
    "gym": ("in a gym",),
    "library": ("in a library", "in front of bookshelves"),
    "hallway": ("in a hallway", "in a corridor"),
    "studio": ("in a studio",),
    "beach": ("on a beach", "on the beach", "at the beach", "by the sea"),
    "forest": ("in a forest", "in the forest", "in the woods"),
    "park": ("in a park", "in the park"),
    "city street": ("on a city street", "on a street", "in the city", "on a street in the city"),
    "mountains": ("in the mountains", "in front of mountains"),
    "desert": ("in a desert", "in the desert"),
    "snow field": ("in a snowy field", "in the snow", "in a snowy landscape"),
    "garden": ("in a garden", "in the garden"),
    "football field": ("on a football field", "on a soccer field", "in a stadium"),
    "rooftop": ("on a rooftop", "on the roof of a building"),
}
BARE_PLACES = {
    "snow field": ("snowy field", "snow"),
    "mountains": ("mountains",),
    "city street": ("city street", "city"),
    "football field": ("football field", "stadium"),
}
TIMES = {
    "day": ("during the day", "on a sunny day", "in daylight"),
    "sunset": ("at sunset", "in the evening light", "at dusk"),
    "night": ("at night", "in the dark"),
    "overcast": ("on a cloudy day", "under a grey sky"),
    "fog": ("in the fog", "on a foggy day"),
    "rain": ("in the rain", "on a rainy day"),
    "snow": ("while it snows", "on a snowy day", "in falling snow"),
}
BARE_TIMES = {
    "day": ("day", "daylight"),
    "sunset": ("sunset",),
    "night": ("night",),
    "overcast": ("cloudy", "overcast"),
    "fog": ("fog", "foggy"),
    "rain": ("rain", "rainy"),
    "snow": ("snowing", "falling snow"),
}
POSES = {
    "standing": ("standing",),
    "walking": ("walking",),
    "running": ("running", "jogging"),
    "sitting": ("sitting",),
    "lying": ("lying", "lying down", "lying on the ground"),
    "kneeling": ("kneeling", "kneeling down"),
    "crouching": ("crouching", "crouching down", "squatting"),
    "jumping": ("jumping", "jumping in the air"),
    "arms raised": ("with raised arms", "raising both arms", "with both arms up"),
    "waving": ("waving", "waving a hand"),
}
SITTING_LOW = ("sitting on the ground", "sitting on the floor")
VIEWS = {
    "front": ("seen from the front", "facing the camera", "from the front"),
    "side": ("seen from the side", "in profile", "from the side"),
    "back": ("seen from behind", "from behind", "with the back to the camera"),
}
STYLE_PREFIXES = {
    "photo": ("a photo of", "photo of", "a photograph of", "a picture of"),
    "pencil sketch": ("a pencil sketch of", "pencil drawing of", "a sketch of", "sketch of"),
    "watercolour": ("a watercolour of", "watercolour painting of", "a watercolor painting of", "watercolor of"),
    "cartoon": ("a cartoon of", "cartoon of", "a cartoon drawing of", "a comic of"),
    "oil painting": ("an oil painting of", "oil painting of", "a painting in oil of"),
    "black and white": ("a black and white photo of", "black and white photograph of"),
    "pixel art": ("pixel art of", "a pixel art picture of"),
}
STYLE_SUFFIXES = {
    "photo": ("photo", "photograph", "realistic"),
    "pencil sketch": ("pencil sketch", "sketch", "pencil drawing"),
    "watercolour": ("watercolour", "watercolor", "watercolour painting", "in the style of a watercolour"),
    "cartoon": ("cartoon", "cartoon style", "comic"),
    "oil painting": ("oil painting", "in oil", "in the style of an oil painting"),
    "black and white": ("black and white", "black and white photo", "monochrome"),
    "pixel art": ("pixel art", "pixel art style"),
}
NOUNS = {
    ("man", "child"): ("a boy",),
    ("woman", "child"): ("a girl",),
    ("man", "young"): ("a man", "a young man"),
    ("woman", "young"): ("a woman", "a young woman"),
    ("man", "middle-aged"): ("a man", "a middle-aged man"),
    ("woman", "middle-aged"): ("a woman", "a middle-aged woman"),
    ("man", "old"): ("an old man", "an elderly man"),
    ("woman", "old"): ("an old woman", "an elderly woman"),
}
ANYBODY = ("a person", "somebody", "someone")
NOBODY = ("nobody", "no people", "an empty scene", "no person", "nobody there")
HAIR = {
    "short": "short {} hair",
    "bob": "{} hair in a bob",
    "long": "long {} hair",
    "ponytail": "{} hair in a ponytail",
    "bun": "{} hair in a bun",
    "curly": "curly {} hair",
    "afro": "a {} afro",
}
PLURAL = frozenset({"trousers", "jeans", "leggings", "shorts", "sneakers", "shoes", "boots", "flowers"})
SYNONYMS = {"trousers": ("trousers", "pants"), "sneakers": ("sneakers", "trainers"), "sweater": ("sweater", "pullover")}
COLOR_WORDS = {"grey": ("grey", "gray")}
CONNECTORS = (
    "a", "an", "and", "with", "in", "on", "wearing", "dressed", "clothes", "of", "background", "plain", "hair", "beard",
    "bald", "head", "glasses", "next", "to", "front", "who", "is", "under", "open", "backdrop",
)  # fmt: skip
