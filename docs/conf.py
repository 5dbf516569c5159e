"""Configuration of the documentation; ``nox -s docs`` builds it."""

import re
import sys
from pathlib import Path
from typing import Any

import lowrank

sys.path.insert(0, str(Path(__file__).parent))  # of capabilities.py and pictures.py
import capabilities

project = "lowrank"
author = "The lowrank developers"
project_copyright = author
version = release = lowrank.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = [
    "_build",
    "capabilities_table.md",
    "explanation/bounds_table.md",
    "explanation/factorizations_tables.md",
    "explanation/floor_table.md",
    "explanation/published_tables.md",
    "explanation/scaling_table.md",
    "gallery",
]
nitpicky = True
bibtex_bibfiles = ["references.bib"]
# Indented formulas and tables are no Python.
highlight_language = "none"

# The names of other projects that the pages link to, each with its page there. They are kept here,
# and not loaded: a build needs no network, and does not depend on what others have moved today.
# `nox -s links` looks whether the pages are where they were.
INVENTORIES = {
    "numpy": "https://numpy.org/doc/stable",
    "python": "https://docs.python.org/3",
    "scikit-learn": "https://scikit-learn.org/stable",
    "scipy": "https://docs.scipy.org/doc/scipy",
    "torch": "https://docs.pytorch.org/docs/stable",
}
intersphinx_mapping = {
    name: (address, f"inventories/{name}.inv") for name, address in INVENTORIES.items()
}
# Publishers refuse robots; their addresses are made of the DOIs, which are looked at by people.
linkcheck_ignore = [r"https://doi\.org/"]
linkcheck_timeout = 20

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Arrays have no static type yet: the docstrings say what the signatures cannot.
autodoc_typehints = "none"
autodoc_preserve_defaults = False
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
# All but: sections that would be empty words (See Also, an extended summary, examples of results),
# sections of methods that return the object, groups of options that share one line, and summaries
# that begin with a formula or are no sentence of command.
numpydoc_validation_checks = {
    "all", "ES01", "EX01", "PR01", "PR04", "PR07", "PR09", "RT01", "RT03", "SA01", "SS02", "SS05",
}  # fmt: skip
# Fields of a named tuple, and what a module imports.
numpydoc_validation_exclude = {r"\.Deviation\.", r"gallery\.(Mapping|array_namespace|device_of)$"}
# Types in the lists of parameters are links, where they name a class. `array` is of any library.
numpydoc_xref_param_type = True
numpydoc_xref_ignore = "all"
PLAIN = (
    "array",
    "array_like",
    "callable",
    "generator",
    "iterable",
    "scalar",
    "sequence",
    "None",
    "True",
    "False",
)
numpydoc_xref_aliases = (
    {word: word for word in PLAIN}
    | {"bool": ":class:`bool`", "float": ":class:`float`", "int": ":class:`int`"}
    | {"list": ":class:`list`", "str": ":class:`str`", "tuple": ":class:`tuple`"}
    | {"ValueError": ":exc:`ValueError`", "TypeError": ":exc:`TypeError`"}
    | {"RuntimeError": ":exc:`RuntimeError`", "UserWarning": ":exc:`UserWarning`"}
    | {
        name: f":class:`{name}`"
        for name in (
            "contextlib.ExitStack",
            "numpy.random.Generator",
            "torch.dtype",
            "torch.nn.Module",
        )
    }
    | {name: f":class:`~lowrank.optim.{name}`" for name in ("Groups", "Row")}
    | {"Deviation": ":class:`~lowrank.bounds.Deviation`"}
    | {name: f":class:`~lowrank.{name}`" for name in lowrank.__all__ if name[0].isupper()}
)
copybutton_exclude = ".linenos, .gp, .go"

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "within_subsection_order": "FileNameSortKey",
    "backreferences_dir": "auto_gallery/backreferences",
    "doc_module": ("lowrank",),
    "reference_url": {"lowrank": None},
    "image_scrapers": ("pictures.scrape",),
    "image_srcset": ["2x"],
    "reset_modules": ("matplotlib", "pictures.set_style"),
    "capture_repr": (),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "min_reported_time": 5,
    "write_computation_times": False,
}

html_theme = "pydata_sphinx_theme"
html_title = "lowrank"
html_static_path = ["_style"]
html_css_files = ["gallery.css"]
html_theme_options = {
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
# Parts that are single pages have nothing to unfold beside them.
html_sidebars = {page: [] for page in ("index", "reference", "benchmarks", "over_time")}

# What docstrings name in plain words, and the pages link to.
SOURCES = {
    r"doi:(10\.\d+/[^\s,;()]*[^\s,;().])": r"https://doi.org/\1",
    r"arXiv[ :](\d{4}\.\d{5})": r"https://arxiv.org/abs/\1",
    r"SPEC 7": "https://scientific-python.org/specs/spec-0007/",
}


def link_sources(*of_docstring: Any) -> None:
    lines: list[str] = of_docstring[-1]
    for pattern, address in SOURCES.items():
        lines[:] = [re.sub(pattern, rf"`\g<0> <{address}>`__", line) for line in lines]


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", link_sources)


(Path(__file__).parent / "capabilities_table.md").write_text(
    f"{capabilities.functions_table()}\n{capabilities.libraries_table(functions=False)}",
    encoding="utf-8",
)

reference = (Path(__file__).parent / "reference.md").read_text(encoding="utf-8")
documented = re.findall(r"^\.\. auto\w+:: (?:lowrank\.)?(\w+)", reference, re.MULTILINE)
if missing := set(lowrank.__all__) - {"__version__"} - set(documented):
    message = f"docs/reference.md lacks {', '.join(sorted(missing))}"
    raise LookupError(message)
