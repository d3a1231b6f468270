"""The table of methods: names for (rule, extract, aggregate) triples and for the CAM weightings."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from transforms.aggregate import AGGREGATES
from transforms.backward import RULES
from transforms.cam import WEIGHTINGS
from transforms.extract import EXTRACTS, Tapped


class MethodError(ValueError):
    """A method's name is neither in the table nor a valid ``rule:extract:aggregate``."""


@dataclass(frozen=True)
class Method:
    """How a tap becomes a map: a backward rule, then phases 1 and 2 or a CAM weighting."""

    name: str
    rule: str
    extract: str | None
    aggregate: str | None
    source: str = "rule:extract:aggregate"

    @property
    def relu_on_read(self) -> bool:
        """Whether the map is stored signed and its paper applies a ReLU to it.

        That is the CAM family, and contrastive excitation backprop.
        """
        return self.extract is None or self.name == "contrastive_excitation_backprop"

    @property
    def formula(self) -> str:
        """``rule:extract:aggregate``, or what stands in for it."""
        if self.extract is None:
            return f"{self.rule}:{self.name} weighting"
        return f"{self.rule}:{self.extract}:{self.aggregate}"

    def map(self, tap: Tapped) -> Tensor:
        """The map ``[B, h, w]`` of one tap, raw: nothing is normalised."""
        if self.extract is None or self.aggregate is None:
            return WEIGHTINGS[self.name](tap)
        return AGGREGATES[self.aggregate](tap.contribution(self.extract))


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("gradient", "plain", "bias", "max_abs", "Simonyan et al. 2014"),
        Method("gradient_sum", "plain", "bias", "sum", "Simonyan et al. 2014, summed"),
        Method("linear_approx", "plain", "scaling", "sum", "gradient × activation"),
        Method("normgrad", "plain", "conv1x1", "norm", "Rebuffi et al. 2020"),
        Method("normgrad_selective", "plain", "scaling", "filter_norm", "Rebuffi et al. 2020"),
        Method("normgrad_real", "plain", "real", "norm", "Rebuffi et al. 2020, conv layers only"),
        Method("guided_backprop", "guided", "bias", "max_abs", "Springenberg et al. 2015"),
        Method("guided_backprop_sum", "guided", "bias", "sum", "Springenberg et al. 2015, summed"),
        Method("deconvnet", "deconvnet", "bias", "max_abs", "Zeiler and Fergus 2014"),
        Method("deconvnet_sum", "deconvnet", "bias", "sum", "Zeiler and Fergus 2014, summed"),
        Method("excitation_backprop", "excitation", "bias", "sum", "Zhang et al. 2016, MWP"),
        Method(
            "contrastive_excitation_backprop",
            "contrastive",
            "bias",
            "sum",
            "Zhang et al. 2016, c-MWP",
        ),
        Method("grad_cam", "plain", None, None, "Selvaraju et al. 2017"),
        Method("grad_cam_pp", "plain", None, None, "Chattopadhay et al. 2018"),
        Method("xgrad_cam", "plain", None, None, "Fu et al. 2020"),
        Method("hires_cam", "plain", None, None, "Draelos and Carin 2020"),
        Method("layer_cam", "plain", None, None, "Jiang et al. 2021"),
    )
}


def parse_methods(names: Iterable[str]) -> tuple[Method, ...]:
    """Methods by name or ``rule:extract:aggregate``, in the order given.

    Raises:
        MethodError: a name is unknown, or given twice; the message lists the valid ones.
    """
    methods = tuple(_parse(name) for name in names)
    if not methods:
        raise MethodError(f"no method given; valid: {_valid()}")
    given = [method.name for method in methods]
    if len(set(given)) < len(given):
        twice = sorted({name for name in given if given.count(name) > 1})
        raise MethodError(f"method given twice: {', '.join(twice)}")
    return methods


def _parse(name: str) -> Method:
    if name in METHODS:
        return METHODS[name]
    if name.count(":") != 2:
        raise MethodError(f"unknown method {name!r}; valid: {_valid()}")
    rule, extract, aggregate = name.split(":")
    tables: tuple[tuple[str, str, Iterable[str]], ...] = (
        ("rule", rule, RULES),
        ("extract", extract, EXTRACTS),
        ("aggregate", aggregate, AGGREGATES),
    )
    for kind, part, valid in tables:
        if part not in valid:
            raise MethodError(f"unknown {kind} {part!r} in {name!r}; valid: {', '.join(valid)}")
    return Method(name, rule, extract, aggregate)


def _valid() -> str:
    return f"{', '.join(METHODS)}, or any rule:extract:aggregate"
