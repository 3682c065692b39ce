"""The pose as twelve keypoints: (x, y) in [0, 1], x right and y down; left and right are the person's own."""

from pathlib import Path

from bolid_sdk import Generator

REFERENCE = Path(__file__).parent / "ref.png"

ARMS_RAISED = [
    (0.58, 0.36), (0.42, 0.36),  # shoulders, left before right
    (0.66, 0.26), (0.34, 0.26),  # elbows
    (0.64, 0.14), (0.36, 0.14),  # wrists
    (0.55, 0.57), (0.45, 0.57),  # hips
    (0.56, 0.74), (0.44, 0.74),  # knees
    (0.56, 0.90), (0.44, 0.90),  # ankles
]  # fmt: skip

generator = Generator()
generator(REFERENCE, "with raised arms in a garden", pose=ARMS_RAISED, seed=7).save("own_pose.png")
