"""What is configured: partners, data sources, folders, traits and all else a workspace file describes.

``base`` opens the database, ``tables`` holds its tables, ``objects`` reads and writes single objects with their
history, ``facade`` gives the views other rooms use, ``workspace`` makes the catalog what a workspace file says.
"""

from __future__ import annotations

from openaudience.catalog.base import Base, open_engine
from openaudience.catalog.facade import Catalog, Partner

__all__ = ["Base", "Catalog", "Partner", "open_engine"]
