"""`module:factory`: a model of the user's own, imported and made.

It is code of others: whatever it raises becomes one line with its own message.
"""

import importlib
import inspect
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pipeline.errors import SettingsError, Terminated
from pipeline.shadowing import check_not_hidden
from transforms.names import unknown_name

_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LONGEST = 400


def load_factory(name: str) -> Callable[..., Any]:
    """What `module:factory` names.

    Raises:
        SettingsError: nothing that can be imported, or called.
    """
    module_name, _, attribute = name.partition(":")
    # A factory in the user's own folder is found as `python` would find it.
    if "" not in sys.path:
        sys.path.insert(0, "")
    cannot = f"cannot import the model factory {name!r}"
    try:
        with _ends(cannot):
            module = importlib.import_module(module_name)
    except SettingsError as error:
        check_not_hidden(module_name)
        raise SettingsError(f"{error}; valid: module:factory") from error
    if not hasattr(module, attribute):
        check_not_hidden(module_name)
        callables = [n for n, value in vars(module).items() if callable(value) and n[0] != "_"]
        wrong = unknown_name(f"name in {module_name}", attribute, callables)
        raise SettingsError(f"{cannot}: {wrong}; valid: module:factory")
    factory: Callable[..., Any] = getattr(module, attribute)
    if isinstance(factory, nn.Module):
        raise SettingsError(
            f"{name!r} is a module, not a factory of one; give a function without arguments that "
            "returns it"
        )
    if not callable(factory):
        raise SettingsError(f"{name!r} is not callable; valid: module:factory")
    return factory


def made_by_factory(name: str, num_classes: int | None) -> nn.Module:
    """The module that a factory makes.

    Raises:
        SettingsError: the factory cannot be called so, fails, or gives something else.
    """
    factory = load_factory(name)
    options = {} if num_classes is None else {"num_classes": num_classes}
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some functions that are written in C do not say
        signature = None
    try:
        if signature:
            signature.bind(**options)
    except TypeError as error:
        given = "num_classes" if options else "no argument"
        instead = f"a function that can be called with {given}"
        if not options and "num_classes" in str(error):
            instead = "--num-classes N"
        raise SettingsError(
            f"the model factory {name} cannot be called with {given}: {error}; give {instead}"
        ) from error
    with _ends(f"the model factory {name} fails"):
        model = factory(**options)
    if torch.is_inference_mode_enabled():
        raise SettingsError(
            f"{name} leaves torch.inference_mode on, in which nothing has a gradient; leave it "
            "before the model is returned"
        )
    if not isinstance(model, nn.Module):
        raise SettingsError(
            f"{name} gave {_in_words(model)}, not a module; give a function that returns a "
            "torch.nn.Module"
        )
    return model


def _in_words(value: object) -> str:
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    return f"a {type(value).__name__}"


def in_one_line(error: BaseException) -> str:
    """An exception's own message without line breaks and colours, or where it came from."""
    text = " ".join(_ESCAPES.sub("", str(error)).replace("c10::", "").split())
    if not text or isinstance(error, KeyError):
        frames = traceback.extract_tb(error.__traceback__)
        kind = re.sub(r"(?<=\w)(Error|Exception)$", " error", type(error).__name__).lower()
        text = f"{kind} {text}".strip()
        if frames:
            text += f" in {os.path.basename(frames[-1].filename)}, line {frames[-1].lineno}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


@contextmanager
def _ends(what: str) -> Iterator[None]:
    """Whatever is raised inside, in one line that begins with `what`; see `_put_back`."""
    try:
        with _put_back():
            yield
    except (KeyboardInterrupt, Terminated):
        raise
    except SystemExit as error:
        raise SettingsError(
            f"{what}: it ends the program (sys.exit) and gives no model; give a function that "
            "returns a torch.nn.Module"
        ) from error
    except BaseException as error:
        raise SettingsError(f"{what}: {in_one_line(error)}") from error


@contextmanager
def _put_back() -> Iterator[None]:
    """What the code inside sets for the whole process holds for that code alone."""
    folder, threads = os.getcwd(), torch.get_num_threads()
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    autocast = torch.is_autocast_enabled("cpu")
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled()), warnings.catch_warnings():
            yield
    finally:
        os.chdir(folder)
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            # None, and not the CPU itself, is the state in which no call is looked at.
            torch.set_default_device(None if device.type == "cpu" else device)
        torch.set_autocast_enabled("cpu", autocast)
