"""Why a checkpoint is not taken: errors that name the file, and no path outside the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vtryon.errors import Reason, SettingsError, VtryonError


def not_found(message: str) -> SettingsError:
    """Make the error for a checkpoint, a part or a file that is not there."""
    return SettingsError(message, reason=Reason.CHECKPOINT_NOT_FOUND)


def unsafe(message: str) -> SettingsError:
    """Build the error for a file whose format can run code."""
    return SettingsError(message, reason=Reason.CHECKPOINT_UNSAFE)


def unsupported(message: str) -> SettingsError:
    """Build the error for unsupported content of a checkpoint."""
    return SettingsError(message, reason=Reason.CHECKPOINT_UNSUPPORTED)


def corrupt(message: str) -> SettingsError:
    """Make the error for files that are damaged or contradict one another."""
    return SettingsError(f"the checkpoint is damaged: {message}", reason=Reason.CHECKPOINT_CORRUPT)


@contextmanager
def library_errors(name: str) -> Iterator[None]:
    """Turn whatever a library raises while it reads a part into a refusal that names the part.

    Raises:
        SettingsError: the block raised; the log has the library's own words.
    """
    try:
        yield
    except VtryonError:
        raise
    except ImportError as error:
        package = error.name or str(error).splitlines()[0]
        raise unsupported(
            f"{name} needs a package that is not installed ({package}): install it, or take a "
            "checkpoint without what needs it"
        ) from error
    except Exception as error:
        # torch's own class is known by its name: the pipeline reads geometry without torch.
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            raise SettingsError(
                f"there is not enough memory for {name}: choose another device, or a smaller dtype"
            ) from error
        raise corrupt(f"{name} can't be loaded ({type(error).__name__})") from error


def few(names: list[str]) -> str:
    """List the first of many names, and how many there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
