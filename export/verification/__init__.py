"""What an export is compared with, and how much of it is run."""
