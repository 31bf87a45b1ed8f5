"""How Sphinx builds the site from the pages that site_pages.py gathers."""

project = "dlrm-torchrec"
html_title = "dlrm-torchrec"
extensions = ["myst_parser"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
myst_heading_anchors = 4
smartquotes = False  # they would turn the dashes of --options into others
