"""The site: Sphinx and MyST-NB over the pages that build.py puts together. Nothing is run here and
nothing is fetched.
"""

import html
import sys
from pathlib import Path

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

sys.path.insert(0, str(Path(__file__).parent))

project = "medgan_nb"
copyright = "2026, medgan_nb contributors"
extensions = ["myst_nb"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build"]

nb_execution_mode = "off"
nb_ipywidgets_js = {}  # pages show the static picture; nothing comes from a CDN
nb_mime_priority_overrides = [
    ("html", "application/vnd.jupyter.widget-view+json", None),
    ("html", "image/png", 5),
]
myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
suppress_warnings = ["myst.header"]  # notebooks may begin a part at any depth

html_theme = "pydata_sphinx_theme"
html_title = "medgan_nb"
html_static_path = ["_static"]
html_css_files = ["components.css", "site.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
html_show_search_summary = False  # it would fetch pages, which a browser refuses from disk
html_math_renderer = "mathml"
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_toc_level": 2,
    "show_prev_next": True,
    "navigation_with_keys": False,
    "search_bar_text": "Search the site",
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "back_to_top_button": False,
}
html_context = {"default_mode": "auto"}
html_sidebars = {page: [] for page in ("index", "gallery", "measuring", "api")}


def math_html(latex: str, display: str) -> str:
    "A formula as MathML, which browsers draw themselves; its LaTeX stands in `alttext`."
    latex = latex.strip()
    mathml = convert(
        latex.replace("\\tfrac", "\\frac").replace("\\dfrac", "\\frac"), display=display
    )
    return mathml.replace("<math ", f'<math alttext="{html.escape(latex, quote=True)}" ', 1)


def inline_math(self, node):
    self.body.append(math_html(node.astext(), "inline"))
    raise SkipNode


def block_math(self, node):
    self.body.append(f'<div class="math">{math_html(node.astext(), "block")}</div>')
    raise SkipNode


def setup(app):
    app.add_html_math_renderer(
        "mathml", inline_renderers=(inline_math, None), block_renderers=(block_math, None)
    )
