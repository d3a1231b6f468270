"""The browser that the tests of pages share."""

from browser import browser

__all__ = ["browser"]
