"""Nothing here asks a model hub for anything: every model is built from a config."""

import os

# Read when huggingface_hub is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest


@pytest.fixture(autouse=True)
def no_state_of_accelerate_is_left():
    """Accelerate keeps one state for a process; every test has its own."""
    yield
    import sys  # noqa: PLC0415

    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState  # noqa: PLC0415

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
