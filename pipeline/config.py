"""Every setting that decides the bytes of a run."""


class SettingsError(ValueError):
    """A setting is wrong: the message says which, and what is valid."""
