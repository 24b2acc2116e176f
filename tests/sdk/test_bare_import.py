import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "numpy",
    "PIL",
    "diffusers",
    "transformers",
    "tritonclient",
    "aiokafka",
    "pydantic",
)


def test_importing_the_sdk_imports_nothing_heavy() -> None:
    program = f"import sys, vtryon; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "modules",
    [
        (
            "vtryon_services.host, vtryon_services.backends.scripted, "
            "vtryon_services.jobs.service, vtryon_services.bridges.rest.server, "
            "vtryon_services.bridges.kafka.bridge"
        ),
        "vtryon_services.backends.triton, vtryon_services.backends.ensemble",
    ],
    ids=["without a model", "with its models in Triton"],
)
def test_services_that_compute_nothing_import_no_torch(modules: str) -> None:
    program = (
        f"import sys, {modules}; "
        "print([name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_public_names_are_sorted_and_all_there() -> None:
    import vtryon

    assert vtryon.__all__ == sorted(vtryon.__all__)
    assert all(hasattr(vtryon, name) for name in vtryon.__all__)
    assert all(getattr(vtryon, name).__doc__ for name in vtryon.__all__ if name != "Event")
