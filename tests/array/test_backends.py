import pytest
from conftest import ABSENT, BACKENDS


@pytest.mark.parametrize("name", ["torch:cpu", "torch:cuda", "cupy"])
def test_optional_backends_are_tested_where_they_exist(name):
    if name in ABSENT:
        pytest.skip(f"all tests leave out {name}: {ABSENT[name]}")
    assert name in [backend.name for backend in BACKENDS]
