"""Variables of one service of a local mesh: those set by `vtryon up`, and the user's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vtryon.backend_settings import unread
from vtryon.errors import SettingsError


class Variables:
    """Collects the variables of a service's process.

    Attributes:
        added: the variables, by their full names.
    """

    def __init__(self, service: str, given: Mapping[str, str], common: Mapping[str, str]) -> None:
        """Start with `common`; `given` is the inherited environment."""
        self._service = service
        self._prefix = f"VTRYON_{service.upper().replace('-', '_')}_"
        self._given = {**given, **common}
        self.added = dict(common)

    def default(self, name: str, value: str, *, over_short: bool = False) -> None:
        """Set a default, over which the user's variable takes precedence.

        Args:
            name: of the setting, such as BACKEND.
            value: used if the user has not set the variable.
            over_short: an option was read already, so that VTRYON_BACKEND is ignored here, and
                VTRYON_SAMPLING_BACKEND is not.
        """
        names = [f"{self._prefix}{name}"] if over_short else self._names(name)
        if not any(one in self._given for one in names):
            self.added[names[0]] = value

    def backend(self, chosen: str) -> str:
        """Set the backend of a stage, unless its own variable does, and give the one that counts.

        Raises:
            SettingsError: variables are set that this backend does not read; names them all.
        """
        self.default("BACKEND", chosen, over_short=True)
        counts = {**self._given, **self.added}[f"{self._prefix}BACKEND"]
        if refused := list(unread(self._service, counts, self._given)):
            raise SettingsError("; ".join(refused))
        return counts

    def decide(self, name: str, value: str) -> None:
        """Set a value that only `up` can know.

        Raises:
            SettingsError: the user's variable has another value; names only the variable, since a
                value may hold a password.
        """
        self.refuse(name, unless=value)
        self.added[f"{self._prefix}{name}"] = value

    def refuse(self, name: str, unless: str) -> None:
        """Refuse a setting that the command line of the process decides.

        Raises:
            SettingsError: the user's variable has another value than `unless`.
        """
        for variable in self._set(name):
            if self._given[variable].lower() != unless.lower():
                raise SettingsError(
                    f"{variable} is set, but `vtryon up` chooses this value itself: unset it, or "
                    "start the services with `vtryon serve`"
                )

    def _set(self, name: str) -> Iterator[str]:
        return (one for one in self._names(name) if one in self._given)

    def has(self, name: str) -> bool:
        """Whether the user has set it, for this service or for all."""
        return any(self._set(name))

    def _names(self, name: str) -> list[str]:
        return [f"{self._prefix}{name}", f"VTRYON_{name}"]
