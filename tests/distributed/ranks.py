"""Two and four ranks for the tests of a file, started when first asked for.

Not in a conftest, which would hide the one above from tests that import it.
"""

from collections.abc import Iterator

import pytest
from processes import World


@pytest.fixture(scope="module")
def worlds() -> Iterator[dict[int, World]]:
    made = {count: World(count) for count in (2, 4)}
    yield made
    for world in made.values():
        world.close()


@pytest.fixture(params=[2, 4], ids=lambda count: f"{count} ranks")
def world(request: pytest.FixtureRequest, worlds: dict[int, World]) -> World:
    return worlds[request.param]
