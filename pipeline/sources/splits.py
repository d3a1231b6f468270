"""How people name the parts of a set."""

SPLITS = ("train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval")
