#!/usr/bin/env -S uv run --script
# /// script
# dependencies = ["nox"]
# ///
"""Tasks in fresh environments: ``nox`` runs checks and tests, ``nox -l`` lists the rest."""

import nox

nox.needs_version = ">=2025.10.14"
nox.options.default_venv_backend = "uv|virtualenv"

PROJECT = nox.project.load_toml("pyproject.toml")
TESTED = ("-c", "constraints.txt")


def group(name: str) -> list[str]:
    return nox.project.dependency_groups(PROJECT, name)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types, spelling, the order of the modules and the metadata."""
    session.install(*TESTED, "-e", ".", *group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")
    session.run("codespell")
    session.run("repo-review", ".")
    session.run("validate-pyproject", "pyproject.toml")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests with the versions of constraints.txt; arguments go to pytest."""
    session.install(*TESTED, ".[test]")
    session.run("pytest", "-n", "auto", "--dist", "worksteal", *session.posargs)


@nox.session(default=False)
def tests_lowest(session: nox.Session) -> None:
    """Run the tests with the oldest supported versions of what the library needs."""
    session.install(*TESTED, ".[test]")
    session.install(*(need.replace(">=", "==") for need in PROJECT["project"]["dependencies"]))
    session.run("pytest", "-n", "auto", "--dist", "worksteal", *session.posargs)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the documentation into docs/_build; any warning is an error."""
    session.install(*TESTED, ".", *group("docs"))
    session.run("sphinx-build", "-W", "-E", "docs", "docs/_build")


@nox.session(default=False)
def links(session: nox.Session) -> None:
    """Look up every address in the documentation; needs a network."""
    session.install(*TESTED, ".", *group("docs"))
    session.run(
        "sphinx-build", "-b", "linkcheck", "-D", "plot_gallery=0", "docs", "docs/_build/links"
    )


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Run every benchmark once on what is installed here; arguments go to ``asv run``."""
    session.install(*TESTED, ".", *group("bench"))
    session.run("asv", "machine", "--yes")
    session.run("asv", "run", "--python=same", "--quick", "--show-stderr", *session.posargs)


if __name__ == "__main__":
    nox.main()
