"""Configure Sphinx. The site mirrors the layout of the repository, so that links work on GitHub and on the site."""

project = "vision-pipeline"
html_title = project
html_show_copyright = False
html_theme = "furo"
html_copy_source = False
extensions = ["myst_parser"]
include_patterns = ["docs/*.md", "benchmarks/*.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
root_doc = "docs/index"
myst_heading_anchors = 4
nitpicky = True
