"""Sphinx: ``make docs`` at the root of the repository, or ``sphinx-build -W docs docs/_build/html``."""

import sys
from pathlib import Path

# Importing the package needs no Django settings.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import django_mysqlpool

project = "django-mysqlpool"
copyright = "the django-mysqlpool developers"
version = release = django_mysqlpool.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinxcontrib.mermaid"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"django-mysqlpool {version}"

# As GitHub reads them.
myst_fence_as_directive = ["mermaid"]
myst_enable_extensions = ["substitution"]
myst_substitutions = {"version": version}
myst_heading_anchors = 3
# Error texts and SQL are quoted as they are: no curly quotation marks, no dashes made of hyphens.
smartquotes = False

autodoc_typehints = "description"
# Types of what a docstring documents, and of nothing else.
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
