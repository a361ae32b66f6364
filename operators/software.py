"""Name and version of this software: the one place they are stated."""

NAME = "covid-ct-map"
VERSION = "0.1.0"
MANUFACTURER = "covid-ct-map developers"
RESEARCH_NOTICE = "Research use only. Not for diagnostic use."
"""Said by every output while the shipped weights are reference weights."""
