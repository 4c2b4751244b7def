"""Settings of the documentation."""

import builtins
import logging
import sys
from importlib import metadata

project = "parmap"
author = "The parmap developers"
copyright = "2026, The parmap developers"
release = metadata.version("parmap-plans")

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say it in words
numpydoc_show_class_members = False  # autodoc lists them

# Every name must resolve. The pages are built offline, so what lies outside of parmap stays text.
nitpicky = True
outside = "|".join([*sys.stdlib_module_names, "cloudpickle", "numpy", "pandas", "tqdm"])
nitpick_ignore_regex = [
    (r"py:.*", rf"({outside})(\..*)?"),
    (r"py:.*", "|".join(dir(builtins))),
]

# An empty glob is no error (decisions/ may have no page yet); Sphinx has no setting for it.
logging.getLogger("sphinx.sphinx.directives.other").addFilter(
    lambda record: "toctree glob pattern" not in str(record.msg)
)

html_theme = "pydata_sphinx_theme"
html_title = "parmap"
html_theme_options = {"show_prev_next": False}
html_sidebars = {"**": []}
