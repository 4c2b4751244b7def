"""Settings of the documentation."""

import builtins
import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

project = "parmap"
author = "The parmap developers"
copyright = "2026, The parmap developers"
release = metadata.version("parmap-plans")

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3
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

html_theme = "pydata_sphinx_theme"
html_title = "parmap"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["parmap.css"]
html_theme_options = {
    "header_links_before_dropdown": 6,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": False,
    "show_toc_level": 2,
}
html_sidebars = {page: [] for page in ("index", "tutorial", "coming-from", "benchmarks/index")}


def setup(app):
    """Draw the pictures, from runs made now."""
    app.connect("builder-inited", lambda _: _draw())


def _draw():
    from pictures import draw_all

    draw_all(HERE / "made")
