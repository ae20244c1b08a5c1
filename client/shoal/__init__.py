"""Shoal, a distributed cache for machine learning: read objects through the nearest cache node.

import shoal
c = shoal.connect()
data = c.read("s3://bucket/key", offset=0, length=1 << 20)
with c.view("s3://bucket/key") as v:
    v.numpy()
"""

from shoal.administration import Residency
from shoal.client import Client
from shoal.connect import connect
from shoal.objects import ObjectInfo
from shoal.stats import ReadStats
from shoal.view import View
from shoal_core import errors

__version__ = "0.1.0"

__all__ = ["Client", "ObjectInfo", "ReadStats", "Residency", "View", "connect", "errors"]
