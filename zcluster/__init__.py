"""zcluster: a whole distributed system on one machine, for real."""

__version__ = "0.1.0"
