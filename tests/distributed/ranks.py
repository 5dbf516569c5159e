"""Two and four ranks for the tests of this folder, started when first asked for.

Not in a conftest, which would hide the one above from tests that import it.
"""

from collections.abc import Iterator

import pytest
from processes import World

WORLDS = {count: World(count) for count in (2, 4)}


@pytest.fixture(scope="module")
def worlds(request: pytest.FixtureRequest) -> Iterator[dict[int, World]]:
    yield WORLDS
    users = [item.path for item in request.session.items if "worlds" in item.fixturenames]
    if users[-1] == request.path:
        for world in WORLDS.values():
            world.close()


@pytest.fixture(params=[2, 4], ids=lambda count: f"{count} ranks")
def world(request: pytest.FixtureRequest, worlds: dict[int, World]) -> World:
    return worlds[request.param]
