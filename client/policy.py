"""What a node agrees to, whatever a server asks: its own floor of privacy.

A request comes from the server, and a server may be mistaken or hostile: it could ask for a larger budget, for a weaker
unit, or for an update without noise "since the server adds it". The node's own configuration has the last word, and
says no unless it says yes:

``max-epsilon``
    The largest budget of a run that the node takes part in; 8 when it is left out.
``units``
    Comma-separated privacy units; "user,example,client" when it is left out. "off" must be named.
``noise``
    Who may add the noise; "local,shared" when it is left out. "server" must be named: it trusts the server with the
    node's clipped sum before any noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from common.errors import InvalidSetting, PrivacyError
from common.instructions import TrainRequest


@dataclass(frozen=True, slots=True)
class NodePolicy:
    """The terms that a node accepts.

    Parameters
    ----------
    max_epsilon
        Above 0.
    units
        Privacy units.
    noise
        Who may add the noise.
    """

    max_epsilon: float = 8.0
    units: tuple[str, ...] = ("user", "example", "client")
    noise: tuple[str, ...] = ("local", "shared")

    @classmethod
    def from_config(cls, config: Mapping[str, str]) -> "NodePolicy":
        """Read the policy out of a node's configuration.

        Raises
        ------
        InvalidSetting
            When `max-epsilon` is no number above 0; the node then takes part in nothing.
        """
        usual = cls()
        try:
            epsilon = float(config.get("max-epsilon", usual.max_epsilon))
        except ValueError:
            epsilon = float("nan")
        if not epsilon > 0:
            raise InvalidSetting(
                f"max-epsilon {config.get('max-epsilon')!r} in the node's configuration", expected="a number above 0"
            )
        return cls(epsilon, _names(config, "units", usual.units), _names(config, "noise", usual.noise))

    def check(self, request: TrainRequest) -> None:
        """Refuse a request whose terms are weaker than the node's own.

        Raises
        ------
        PrivacyError
            Naming the term; nothing is charged and nothing is trained.
        """
        terms = request.privacy
        if terms.unit not in self.units:
            raise _refusal("units", f"privacy unit {terms.unit!r}", ", ".join(self.units))
        if terms.unit == "off":
            return
        if terms.noise not in self.noise:
            raise _refusal("noise", f"noise added by {terms.noise!r}", ", ".join(self.noise))
        if not terms.epsilon <= self.max_epsilon:
            raise _refusal("max-epsilon", f"a budget of epsilon {terms.epsilon:g}", f"at most {self.max_epsilon:g}")


def _names(config: Mapping[str, str], key: str, usual: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.strip() for name in config[key].split(",")) if key in config else usual


def _refusal(key: str, found: str, expected: str) -> PrivacyError:
    return PrivacyError(
        f"the server asks for {found}",
        expected=f"what this node agrees to: {expected}",
        consequence="the node does not train",
        mend=f"whoever owns the data may change {key!r} in the node's configuration",
    )
