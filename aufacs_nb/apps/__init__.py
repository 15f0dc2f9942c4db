"""The command line, the report, overlays and the widget demos."""
