"""The version of densecl, alone in its file so that whoever records it need not import the front door."""

__version__ = "0.1.0"
