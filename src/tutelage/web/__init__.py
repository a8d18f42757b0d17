"""The web app for raters: server-rendered pages, a REST API, no torch."""
